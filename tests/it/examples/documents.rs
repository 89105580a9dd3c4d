//! What the documents tell readers to type is understood by the programs.

use super::{
    examples, grants,
    shell::{calls, exchanger_takes, job_takes, values},
};
use jobpass_tests::program::root;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a document has to be typed or copied, command by command: its blocks of code, and code within lines that is
/// a call of `programs`. What stands for something else (`…`) is no command.
pub(super) fn code(text: &str, programs: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (index, part) in text.split("```").enumerate() {
        if index % 2 == 1 {
            let block = part.split_once('\n').map_or("", |(_, block)| block);
            let whole = block.replace("\\\n", "\0");
            found.extend(whole.lines().map(|line| line.replace('\0', "\\\n")));
            continue;
        }
        let prose: Vec<_> = part.lines().filter(|line| !line.starts_with('#')).collect();
        let prose = prose.join("\n");
        let is_call = |span: &&str| programs.iter().any(|program| span.starts_with(&format!("{program} ")));
        found.extend(prose.split('`').skip(1).step_by(2).filter(is_call).map(str::to_owned));
    }
    found.retain(|code| !code.contains('…'));
    found
}

fn documents(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("readable").path());
    let found = entries.flat_map(|path| if path.is_dir() { documents(&path) } else { vec![path] });
    found.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

#[test]
fn commands_of_documents_are_understood() {
    let mut documents = documents(&root().join("docs"));
    documents.extend(examples().iter().map(|example| example.join("README.md")));
    documents.extend(["README.md", "SECURITY.md"].map(|name| root().join(name)));
    let (mut wrong, mut job, mut exchanger) = (Vec::new(), 0, 0);
    for document in documents {
        let text = fs::read_to_string(&document).expect("readable");
        for code in code(&text, &["jobpass", "jobpass-exchanger"]) {
            let (of_job, of_exchanger) = (calls(&code, "jobpass"), calls(&code, "jobpass-exchanger"));
            (job, exchanger) = (job + of_job.len(), exchanger + of_exchanger.len());
            let known = of_job.iter().map(|call| job_takes(call));
            let known = known.chain(of_exchanger.iter().map(|call| exchanger_takes(call)));
            wrong.extend(known.filter_map(|known| Some(format!("{}: {}", document.display(), known.err()?))));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(job > 15 && exchanger > 10, "commands were not found: {job}, {exchanger}");
}

#[test]
fn grants_that_a_readme_asks_for_are_its_examples() {
    let mut asked = 0;
    for example in examples() {
        let (text, known) = (fs::read_to_string(example.join("README.md")).expect("readable"), grants(&example));
        for call in code(&text, &["jobpass"]).iter().flat_map(|code| calls(code, "jobpass")) {
            for grant in values(&call, "--grant") {
                assert!(known.contains_key(grant), "{}: there is no grant `{grant}`", example.display());
                asked += 1;
            }
        }
    }
    assert!(asked > 5, "commands were not found: {asked}");
}

#[test]
fn code_is_found() {
    let text = "# `jobpass no (a | b)`\nUse `jobpass revoke` or `jobpass exec …`, `other x`.\n```sh\na \\\n b\nc\n```\n`jobpass env`";
    assert_eq!(code(text, &["jobpass"]), ["jobpass revoke", "a \\\n b", "c", "jobpass env"]);
}
