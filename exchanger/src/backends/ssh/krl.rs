//! Key revocation lists (OpenSSH, PROTOCOL.krl): which certificates are not to be taken any more.

use super::put_string;
use crate::clock::Timestamp;

const MAGIC: &[u8; 8] = b"SSHKRL\n\0";
const FORMAT_VERSION: u32 = 1;
const SECTION_CERTIFICATES: u8 = 1;
const CERT_SERIAL_LIST: u8 = 0x20;

/// A list of serial numbers. It names no authority, and so holds for certificates of all: serial numbers
/// are random and large, and after a change of the authority's key those of the old one stay listed.
pub(super) fn of_serials(serials: impl Iterator<Item = u64>, now: Timestamp) -> Vec<u8> {
    let now = u64::try_from(now.secs()).unwrap_or(0);
    let mut krl = MAGIC.to_vec();
    krl.extend(FORMAT_VERSION.to_be_bytes());
    krl.extend(now.to_be_bytes()); // the list's version
    krl.extend(now.to_be_bytes()); // when it was made
    krl.extend(0_u64.to_be_bytes()); // flags
    put_string(&mut krl, b""); // reserved
    put_string(&mut krl, b"jobpass");
    let serials: Vec<u8> = serials.flat_map(u64::to_be_bytes).collect();
    if !serials.is_empty() {
        let mut section = Vec::with_capacity(serials.len() + 16);
        put_string(&mut section, b""); // any authority
        put_string(&mut section, b""); // reserved
        section.push(CERT_SERIAL_LIST);
        put_string(&mut section, &serials);
        krl.push(SECTION_CERTIFICATES);
        put_string(&mut krl, &section);
    }
    krl
}
