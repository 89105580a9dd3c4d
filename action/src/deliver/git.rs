//! The answer that git reads from a credential helper (gitcredentials(7), git-credential(1)).

use super::{DeliverError, Given};
use crate::env::now;
use zeroize::Zeroizing;

/// Whether git asks for a credential for this host, over https: it goes to no other.
pub(crate) fn is_for(wanted: &str, host: &str) -> bool {
    let attribute = |name: &str| wanted.lines().filter_map(|line| line.split_once('=')).find(|(key, _)| *key == name);
    let is = |name: &str, value: &str| attribute(name).is_some_and(|(_, found)| found.eq_ignore_ascii_case(value));
    is("protocol", "https") && is("host", host)
}

/// The answer, one attribute a line.
///
/// # Errors
/// When the credential has nothing that can be a password, or one that breaks the line.
pub(crate) fn answer(given: &Given, username: &str, lives: u64) -> Result<Zeroizing<String>, DeliverError> {
    let (username, password) = given.login(username)?;
    if [username, password].iter().any(|text| text.contains(['\n', '\r', '\0'])) {
        return Err(given.wrong_kind("git needs a password of one line"));
    }
    let until = now().saturating_add_unsigned(lives);
    Ok(Zeroizing::new(format!("username={username}\npassword={password}\npassword_expiry_utc={until}\n")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobpass_protocol::Credential;

    #[test]
    fn it_goes_to_its_host_only() {
        for (wanted, fits) in [
            ("protocol=https\nhost=git.example\n", true),
            ("capability[]=authtype\nprotocol=https\nhost=GIT.example\npath=a.git\n", true),
            ("protocol=http\nhost=git.example\n", false),
            ("protocol=https\nhost=git.example.evil\n", false),
            ("protocol=https\nhost=git.example:8443\n", false),
            ("protocol=https\n", false),
            ("", false),
        ] {
            assert_eq!(is_for(wanted, "git.example"), fits, "{wanted}");
        }
    }

    #[test]
    fn an_answer_has_a_line_for_each() {
        let given = |credential| Given { grant: "git".parse().expect("name"), credential };
        let told = answer(&given(Credential::bearer("t".into())), "x-access-token", 60).expect("an answer");
        assert!(told.starts_with("username=x-access-token\npassword=t\npassword_expiry_utc="), "{}", *told);
        for credential in [Credential::bearer("a\nhost=evil".into()), Credential::unchanged()] {
            assert!(answer(&given(credential), "x", 60).is_err());
        }
    }
}
