//! Random bytes: for secrets, and for ids.

use std::cell::RefCell;

/// Random bytes that nobody guesses, of the generator that the signatures' secrets come from too: seeded by the
/// operating system, and again and again, without a system call for each.
#[expect(clippy::expect_used, reason = "without randomness no secret may be made, and nothing can go on")]
pub(crate) fn secret<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("there are random bytes");
    bytes
}

/// What is drawn at once for ids: the generator's cost is in the call, not in the bytes.
const DRAWN: usize = 256;

/// Bytes that were drawn, and how many of them are left.
struct Pool([u8; DRAWN], usize);

thread_local!(static POOL: RefCell<Pool> = const { RefCell::new(Pool([0; DRAWN], 0)) });

/// Random bytes that tell ids from one another. They are drawn ahead of their use, and so good for nothing secret: a
/// copy of the machine that was made in between has the same ones.
pub(crate) fn distinct<const N: usize>() -> [u8; N] {
    const { assert!(N <= DRAWN, "more than is drawn at once") };
    POOL.with_borrow_mut(|Pool(bytes, left)| {
        if *left < N {
            *bytes = secret();
            *left = DRAWN;
        }
        *left -= N;
        let mut given = [0; N];
        given.copy_from_slice(&bytes[*left..*left + N]);
        given
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashSet, thread};

    #[test]
    fn no_bytes_are_given_twice() {
        let draw = || -> Vec<[u8; 8]> {
            let long = (0..500).flat_map(|_| distinct::<32>().as_chunks().0.to_vec());
            long.chain((0..500).map(|_| distinct())).chain((0..500).map(|_| secret())).collect()
        };
        let threads = [thread::spawn(draw), thread::spawn(draw)].map(|thread| thread.join().expect("it ends"));
        let given: Vec<_> = threads.into_iter().flatten().chain(draw()).collect();
        assert_eq!(given.iter().collect::<HashSet<_>>().len(), given.len());
    }
}
