//! Work that a client which goes away does not stop.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{runtime::Handle, sync::Semaphore, time::timeout};

/// Work that nobody waits for any more: each has a place as long as it takes.
#[derive(Clone, Debug)]
pub struct Orphans(Arc<Semaphore>);

impl Default for Orphans {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(Self::PLACES as usize)))
    }
}

impl Orphans {
    /// More than there can be.
    const PLACES: u32 = 1 << 24;

    /// Waits until all of it is done, at most so long; says whether it is.
    pub async fn ended(&self, within: Duration) -> bool {
        timeout(within, self.0.acquire_many(Self::PLACES)).await.is_ok()
    }
}

/// Work that is done where it is waited for; whoever stops waiting leaves the rest of it to a task of its own.
pub(super) struct ToItsEnd<F: Future<Output: Send> + Send + 'static> {
    work: Option<Pin<Box<F>>>,
    orphans: Orphans,
}

impl<F: Future<Output: Send> + Send + 'static> ToItsEnd<F> {
    pub(super) fn new(orphans: &Orphans, work: F) -> Self {
        Self { work: Some(Box::pin(work)), orphans: orphans.clone() }
    }
}

impl<F: Future<Output: Send> + Send + 'static> Future for ToItsEnd<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Out of its place meanwhile: work that panics is not gone on with.
        let Some(mut work) = self.work.take() else { return Poll::Pending };
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for ToItsEnd<F> {
    fn drop(&mut self) {
        if let (Some(work), Ok(runtime)) = (self.work.take(), Handle::try_current()) {
            let place = Arc::clone(&self.orphans.0).try_acquire_owned();
            runtime.spawn(async move {
                let _place = place;
                work.await
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn whoever_waits_gets_the_answer() {
        assert_eq!(ToItsEnd::new(&Orphans::default(), async { 7 }).await, 7);
    }

    #[tokio::test]
    async fn it_ends_when_nobody_waits_any_more() {
        let orphans = Orphans::default();
        let (go_on, waited_for) = oneshot::channel();
        let (done, answer) = oneshot::channel();
        let mut work = ToItsEnd::new(&orphans, async move {
            let word: &str = waited_for.await.expect("the word");
            done.send(word).expect("somebody looks");
        });
        assert!(futures_util::poll!(&mut work).is_pending());
        assert!(orphans.ended(Duration::ZERO).await, "somebody waits for it");
        drop(work);
        assert!(!orphans.ended(Duration::ZERO).await);
        go_on.send("on").expect("it still waits");
        assert_eq!(answer.await, Ok("on"));
        assert!(orphans.ended(Duration::MAX).await);
    }

    #[tokio::test]
    async fn what_never_began_is_done_all_the_same() {
        let (done, answer) = oneshot::channel();
        drop(ToItsEnd::new(&Orphans::default(), async move { done.send(()).expect("somebody looks") }));
        assert_eq!(answer.await, Ok(()));
    }
}
