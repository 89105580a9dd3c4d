//! Random bytes for ids and handles.

use std::cell::RefCell;

/// What is drawn at once: the generator's cost is in the call, not in the bytes.
const DRAWN: usize = 512;

/// Bytes that were drawn, and how many of them are left.
struct Pool([u8; DRAWN], usize);

thread_local!(static POOL: RefCell<Pool> = const { RefCell::new(Pool([0; DRAWN], 0)) });

/// Random bytes, of the generator that the signatures' secrets come from too: seeded by the operating
/// system, and again and again, without a system call for each. What was given is not kept.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    const { assert!(N <= DRAWN, "more than is drawn at once") };
    POOL.with_borrow_mut(|Pool(bytes, left)| {
        if *left < N {
            #[expect(clippy::expect_used, reason = "without randomness no secret may be made, and nothing can go on")]
            aws_lc_rs::rand::fill(bytes).expect("there are random bytes");
            *left = DRAWN;
        }
        *left -= N;
        let mut given = [0; N];
        given.swap_with_slice(&mut bytes[*left..*left + N]);
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
            let handles = (0..500).flat_map(|_| random::<32>().as_chunks().0.to_vec());
            handles.chain((0..500).map(|_| random())).collect()
        };
        let threads = [thread::spawn(draw), thread::spawn(draw)].map(|thread| thread.join().expect("it ends"));
        let given: Vec<_> = threads.into_iter().flatten().chain(draw()).collect();
        assert_eq!(given.iter().collect::<HashSet<_>>().len(), given.len());
        assert!(!given.contains(&[0; 8]), "what was given is not kept, and not given again");
    }
}
