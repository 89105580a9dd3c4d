//! Work that a client which goes away does not stop.

use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::runtime::Handle;

/// Work that is done where it is waited for; whoever stops waiting leaves the rest of it to a task of its own.
pub(super) struct ToItsEnd<F: Future<Output: Send> + Send + 'static>(Option<Pin<Box<F>>>);

impl<F: Future<Output: Send> + Send + 'static> ToItsEnd<F> {
    pub(super) fn new(work: F) -> Self {
        Self(Some(Box::pin(work)))
    }
}

impl<F: Future<Output: Send> + Send + 'static> Future for ToItsEnd<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Out of its place meanwhile: work that panics is not gone on with.
        let Some(mut work) = self.0.take() else { return Poll::Pending };
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.0 = Some(work);
        }
        polled
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for ToItsEnd<F> {
    fn drop(&mut self) {
        if let (Some(work), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn whoever_waits_gets_the_answer() {
        assert_eq!(ToItsEnd::new(async { 7 }).await, 7);
    }

    #[tokio::test]
    async fn it_ends_when_nobody_waits_any_more() {
        let (go_on, waited_for) = oneshot::channel();
        let (done, answer) = oneshot::channel();
        let mut work = ToItsEnd::new(async move {
            let word: &str = waited_for.await.expect("the word");
            done.send(word).expect("somebody looks");
        });
        assert!(futures_util::poll!(&mut work).is_pending());
        drop(work);
        go_on.send("on").expect("it still waits");
        assert_eq!(answer.await, Ok("on"));
    }

    #[tokio::test]
    async fn what_never_began_is_done_all_the_same() {
        let (done, answer) = oneshot::channel();
        drop(ToItsEnd::new(async move { done.send(()).expect("somebody looks") }));
        assert_eq!(answer.await, Ok(()));
    }
}
