//! What every store must do: one suite, run against each of them.

mod world;

pub(crate) use world::{Place, TTL, World};

use super::{
    Entitlement, Filter, Fold, FreezeTarget, Held, MAX_RENEWALS, MAX_RETRIES, Opened, RETRY_WINDOW, Refusal, Rotation,
    Targets,
};
use crate::{
    audit::{Entry, Event, Line},
    leases::{Ending, Lease, Outlives, Revocability, State, TokenKey},
    sealing::Sealed,
};
use futures_util::future::{BoxFuture, join_all};
use jobpass_protocol::{BackendName, GrantName, IssuerName, LeaseId};
use std::time::Duration;
use world::LIFETIME;

const fn over(state: &State) -> Option<Ending> {
    match state {
        State::Revoking { because, .. } | State::Outliving { because, .. } => Some(*because),
        State::Ended { how, .. } => Some(*how),
        State::Pending { .. } | State::Active { .. } => None,
    }
}

type Case = for<'a> fn(&'a mut World) -> BoxFuture<'a, ()>;

/// The suite, by name.
pub(crate) const CASES: &[(&str, Case)] = &[
    ("a lease is read back as it was written", |w| Box::pin(reads_back(w))),
    ("a hundred sessions, one holder", |w| Box::pin(one_holder(w))),
    ("who may use a token again", |w| Box::pin(bindings(w))),
    ("a lost answer is asked for again", |w| Box::pin(lost_answers(w))),
    ("a lost answer in flight", |w| Box::pin(lost_in_flight(w))),
    ("renewal by a child", |w| Box::pin(children(w))),
    ("renewal by extension", |w| Box::pin(extensions(w))),
    ("a family that grows", |w| Box::pin(growing_family(w))),
    ("renewal whose mint failed", |w| Box::pin(void_renewal(w))),
    ("revoke wins over renew", |w| Box::pin(revoke_wins(w))),
    ("an admin's revocation closes the session", |w| Box::pin(closed_sessions(w))),
    ("states change by compare-and-set", |w| Box::pin(compare_and_set(w))),
    ("what a lease keeps comes with its activation and goes with its end", |w| Box::pin(keeps(w))),
    ("the agenda, what is due, what expires", |w| Box::pin(agenda(w))),
    ("listings", |w| Box::pin(listings(w))),
    ("freezes", |w| Box::pin(freezes(w))),
    ("folded denials", |w| Box::pin(folds(w))),
    ("pruning", |w| Box::pin(pruning(w))),
    ("one verb's failure is not another's", |w| Box::pin(failures_stay_alone(w))),
    ("everything survives a new start", |w| Box::pin(survives(w))),
];

async fn reads_back(w: &mut World) {
    for (state, revocability) in
        [(w.active(), Revocability::None), (w.pending(), Revocability::ByName), (w.pending(), Revocability::ByToken)]
    {
        let by = Entitlement::Token(w.binding(w.token(), None, None));
        let opening = w.opening(by, state, revocability);
        let (written, handle) = (opening.lease.clone(), opening.handle);
        let opened = w.store.open_pending(opening).await.expect("opens");
        let Opened::Yes { value, superseded } = opened else { panic!("refused") };
        assert!(superseded.is_empty());
        assert_eq!(value.remote_name(), written.id().remote_name());
        let read = w.store.lease(written.id()).await.expect("reads").expect("is there");
        assert_eq!(format!("{read:?}"), format!("{written:?}"));
        assert!(matches!(w.store.held(written.id(), handle).await, Ok(Held::Current(_))));
        assert!(matches!(w.store.held(written.id(), w.hash()).await, Ok(Held::Unknown)));
    }
    assert_eq!(w.audited("permitted").await, 3);
    for (after, limit, expected) in
        [(0, 2, vec![1, 2]), (1, 9, vec![2, 3]), (2, 1, vec![3]), (3, 9, vec![]), (4, 9, vec![])]
    {
        let lines = w.store.audit(after, limit).await.expect("reads");
        assert_eq!(lines.iter().map(|line| line.link.seq).collect::<Vec<_>>(), expected, "after {after}");
    }
}

async fn one_holder(w: &mut World) {
    let token = w.token();
    let world = &*w;
    let tries = (0..100).map(|_| world.exchange(world.binding(token, Some(world.hash()), None)));
    let answers = join_all(tries).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert!(answers.iter().all(|answer| matches!(answer, Ok(_) | Err(Refusal::Spent))));
    assert_eq!(w.audited("permitted").await, 1, "a refusal writes nothing");
    let all = w.store.leases(Filter::default(), 1000).await.expect("lists");
    assert_eq!(all.len(), 1);
}

async fn bindings(w: &mut World) {
    let (one, other) = (w.hash(), w.hash());
    // (session of the first use, session of the second, what the second gets)
    for (first, second, expected) in [
        (Some(one), Some(one), Ok(())),
        (Some(one), Some(other), Err(Refusal::Spent)),
        (Some(one), None, Err(Refusal::Spent)),
        (None, None, Err(Refusal::Spent)),
        (None, Some(one), Err(Refusal::Spent)),
    ] {
        let token = w.token();
        w.exchange(w.binding(token, first, None)).await.expect("the first use");
        let answer = w.exchange(w.binding(token, second, None)).await.map(drop);
        assert_eq!(answer, expected, "{first:?} then {second:?}");
    }
    let token = w.token();
    let request = w.hash();
    w.exchange(w.binding(token, None, Some(request))).await.expect("the first use");
    let again = w.exchange(w.binding(token, None, Some(request))).await;
    assert_eq!(again, Err(Refusal::Spent), "without a session a request id says nothing");

    let token = w.token();
    for turn in 0..5 {
        let answer = w.exchange(w.binding(token, Some(one), Some(w.hash()))).await.map(drop);
        assert_eq!(answer, if turn < 4 { Ok(()) } else { Err(Refusal::UsesExhausted) }, "use {turn}");
    }
}

async fn lost_answers(w: &mut World) {
    let (token, session, request) = (w.token(), w.hash(), w.hash());
    let ask = || w.binding(token, Some(session), Some(request));
    let (mut last, _) = w.exchange(ask()).await.expect("the first answer");
    let (bystander, _) = w.exchange(w.binding(token, Some(session), Some(w.hash()))).await.expect("another request");
    for retry in 0..MAX_RETRIES {
        let opening = w.opening(Entitlement::Token(ask()), w.active(), Revocability::ByName);
        let id = opening.lease.id();
        let opened = w.store.open_active(opening).await.expect("the store works");
        let Opened::Yes { superseded, .. } = opened else { panic!("retry {retry} was refused") };
        assert_eq!(superseded.iter().map(Lease::id).collect::<Vec<_>>(), [last], "retry {retry}");
        assert_eq!(over(&w.state(last).await), Some(Ending::Superseded));
        last = id;
    }
    assert_eq!(w.exchange(ask()).await, Err(Refusal::RetriesExhausted));
    assert_eq!(over(&w.state(last).await), None, "the last answer stays good");
    assert_eq!(over(&w.state(bystander).await), None, "another request of the session is left alone");
    assert_eq!(w.audited("revoking").await, usize::try_from(MAX_RETRIES).expect("small"));

    let (token, request) = (w.token(), w.hash());
    let ask = || w.binding(token, Some(session), Some(request));
    w.exchange(ask()).await.expect("the first answer");
    w.clock.advance(RETRY_WINDOW);
    w.exchange(ask()).await.expect("just in time");
    w.clock.advance(Duration::from_millis(1));
    assert_eq!(w.exchange(ask()).await, Err(Refusal::RetriesExhausted), "too late");
}

async fn lost_in_flight(w: &mut World) {
    let (token, session, request) = (w.token(), w.hash(), w.hash());
    let by = || Entitlement::Token(w.binding(token, Some(session), Some(request)));
    let first = w.opening(by(), w.pending(), Revocability::ByName);
    let (id, waiting) = (first.lease.id(), first.lease.state().clone());
    assert!(matches!(w.store.open_pending(first).await, Ok(Opened::Yes { .. })));
    let second = w.opening(by(), w.pending(), Revocability::ByName);
    assert!(matches!(w.store.open_pending(second).await, Ok(Opened::Yes { .. })));
    let activated = w.store.transition(id, waiting, w.active(), None, None).await.expect("the store works");
    assert!(!activated, "what was superseded in flight never becomes active");
    assert_eq!(over(&w.state(id).await), Some(Ending::Superseded));
}

async fn children(w: &mut World) {
    let (lease, handle) = w.fresh().await;
    let request = w.hash();
    let rotation = Rotation { lease, presented: handle, request: Some(request) };
    let unknown = Rotation { presented: w.hash(), ..rotation.clone() };
    assert_eq!(w.renew(&unknown, w.active()).await, Err(Refusal::HandleUnknown));

    let (child, _, superseded) = w.renew(&rotation, w.active()).await.expect("renews");
    assert!(superseded.is_empty());
    assert!(matches!(w.store.held(lease, handle).await, Ok(Held::Spent(_))));
    let read = w.store.lease(child).await.expect("reads").expect("is there");
    assert_eq!((read.family().root, read.family().parent), (lease, Some(lease)));
    assert_eq!(over(&w.state(lease).await), None, "the parent's credential may still be in use");

    let (second, given, superseded) = w.renew(&rotation, w.active()).await.expect("the answer was lost");
    assert_eq!(superseded, [child]);
    assert_eq!(over(&w.state(child).await), Some(Ending::Superseded));

    // The client has the second answer and renews with it: now the first handle is of no more use.
    let next = Rotation { lease: second, presented: given, request: None };
    let (grandchild, _, _) = w.renew(&next, w.active()).await.expect("renews again");
    assert_eq!(w.renew(&rotation, w.active()).await, Err(Refusal::HandleReused));
    for member in [lease, second, grandchild] {
        assert_eq!(over(&w.state(member).await), Some(Ending::HandleReused), "the family is taken back");
    }

    // A spent handle with another request id, with none, too often, too late, or beyond the family's life.
    for (what, request, again, wait) in [
        ("another id", Some(w.hash()), Some(w.hash()), Duration::ZERO),
        ("no id", Some(w.hash()), None, Duration::ZERO),
        ("never an id", None, None, Duration::ZERO),
        ("too late", Some([9; 32]), Some([9; 32]), RETRY_WINDOW + Duration::from_millis(1)),
    ] {
        let (lease, presented) = w.fresh().await;
        w.renew(&Rotation { lease, presented, request }, w.active()).await.expect("renews");
        w.clock.advance(wait);
        let answer = w.renew(&Rotation { lease, presented, request: again }, w.active()).await;
        assert_eq!(answer, Err(Refusal::HandleReused), "{what}");
        assert_eq!(over(&w.state(lease).await), Some(Ending::HandleReused), "{what}");
    }
    let (lease, presented) = w.fresh().await;
    let rotation = Rotation { lease, presented, request: Some(w.hash()) };
    for expected in [Ok(()), Ok(()), Err(Refusal::HandleReused)] {
        assert_eq!(w.renew(&rotation, w.active()).await.map(drop), expected, "honoured once more");
    }

    let (lease, presented) = w.fresh().await;
    let late = State::Active { expires_at: w.now() + LIFETIME + Duration::from_millis(1) };
    let rotation = Rotation { lease, presented, request: None };
    assert_eq!(w.renew(&rotation, late).await, Err(Refusal::LeaseOver), "max_lifetime bounds the family");
    w.clock.advance(TTL);
    assert_eq!(w.renew(&rotation, w.active()).await, Err(Refusal::LeaseOver), "an expired lease");
}

async fn extensions(w: &mut World) {
    let (lease, first) = w.fresh().await;
    let request = w.hash();
    let rotation = Rotation { lease, presented: first, request: Some(request) };
    w.clock.advance(Duration::from_secs(60));
    let second = w.extend(&rotation).await.expect("extends");
    let third = w.extend(&rotation).await.expect("the answer was lost");
    assert!(matches!(w.store.held(lease, third).await, Ok(Held::Current(_))));
    for spent in [first, second] {
        assert!(matches!(w.store.held(lease, spent).await, Ok(Held::Spent(_))));
    }
    let next = Rotation { lease, presented: third, request: None };
    w.extend(&next).await.expect("the present handle extends");
    // The handle of the answer that was taken for lost turns up: two parties hold this family.
    let stolen = Rotation { lease, presented: second, request: Some(request) };
    assert_eq!(w.extend(&stolen).await, Err(Refusal::HandleReused));
    assert_eq!(over(&w.state(lease).await), Some(Ending::HandleReused));
}

async fn growing_family(w: &mut World) {
    let (root, mut handle) = w.fresh().await;
    let mut lease = root;
    for renewal in 0..MAX_RENEWALS {
        let rotation = Rotation { lease, presented: handle, request: None };
        match renewal % 4 {
            // What comes to nothing counts as well: it is a lease of the family.
            0 => {
                let opening = w.opening(Entitlement::Renewal(rotation), w.pending(), Revocability::ByName);
                let (id, waiting) = (opening.lease.id(), opening.lease.state().clone());
                assert!(matches!(w.store.open_pending(opening).await, Ok(Opened::Yes { .. })), "{renewal}");
                let ended = State::Ended { how: Ending::Abandoned, at: w.now() };
                assert!(w.store.transition(id, waiting, ended, None, None).await.expect("the store works"));
            }
            1 => handle = w.extend(&rotation).await.expect("extends"),
            _ => (lease, handle, _) = w.renew(&rotation, w.active()).await.expect("renews"),
        }
    }
    let rotation = Rotation { lease, presented: handle, request: None };
    assert_eq!(w.renew(&rotation, w.active()).await, Err(Refusal::RenewalsExhausted));
    assert_eq!(w.extend(&rotation).await, Err(Refusal::RenewalsExhausted));
    assert_eq!(over(&w.state(lease).await), None, "its last credential works on");
    // All that is open of it is taken back at once, whichever lease is named.
    let open = usize::try_from(MAX_RENEWALS / 2 + 1).expect("small");
    assert_eq!(w.revoke(Targets::Family(lease), Ending::Revoked).await.len(), open);
    for id in [root, lease] {
        assert_eq!(over(&w.state(id).await), Some(Ending::Revoked));
    }
    assert_eq!(w.store.leases(Filter::default(), 2000).await.expect("lists").len(), open, "none is ended yet");
    let all = Filter { ended: true, ..Filter::default() };
    let ended = w.store.leases(all, 2000).await.expect("lists").into_iter();
    let void = ended.filter(|lease| matches!(lease.state, State::Ended { .. })).map(|lease| lease.id()).next();
    let told = w.revoke(Targets::Family(void.expect("some came to nothing")), Ending::Revoked).await;
    assert_eq!(told.len(), open + 1, "and itself");
}

async fn void_renewal(w: &mut World) {
    let (lease, presented) = w.fresh().await;
    let rotation = Rotation { lease, presented, request: None };
    for _ in 0..3 {
        let opening = w.opening(Entitlement::Renewal(rotation.clone()), w.pending(), Revocability::ByName);
        let (id, waiting) = (opening.lease.id(), opening.lease.state().clone());
        let opened = w.store.open_pending(opening).await.expect("the store works");
        assert!(matches!(opened, Opened::Yes { .. }), "nobody was given anything for the handle: {opened:?}");
        let ended = State::Ended { how: Ending::Abandoned, at: w.now() };
        assert!(w.store.transition(id, waiting, ended, None, None).await.expect("the store works"));
    }
}

async fn revoke_wins(w: &mut World) {
    let (lease, presented) = w.fresh().await;
    let rotation = Rotation { lease, presented, request: Some(w.hash()) };
    let opening = w.opening(Entitlement::Renewal(rotation.clone()), w.pending(), Revocability::ByName);
    let (child, waiting) = (opening.lease.id(), opening.lease.state().clone());
    assert!(matches!(w.store.open_pending(opening).await, Ok(Opened::Yes { .. })));
    // Revoked by the spent handle's lease while its renewal is in flight: all of the family goes.
    let family = w.revoke(Targets::Family(lease), Ending::Revoked).await;
    assert_eq!(family.iter().map(Lease::id).collect::<Vec<_>>(), [lease, child]);
    assert!(!w.store.transition(child, waiting, w.active(), None, None).await.expect("the store works"));
    assert_eq!(w.renew(&rotation, w.active()).await.map(drop), Err(Refusal::LeaseOver));
    let again = w.revoke(Targets::Family(child), Ending::RevokedByAdmin).await;
    assert!(again.iter().all(|lease| over(lease.state()) == Some(Ending::Revoked)), "the first decision stands");
    assert!(w.revoke(Targets::Family(LeaseId::from_uuid(uuid::Uuid::nil())), Ending::Revoked).await.is_empty());
}

async fn closed_sessions(w: &mut World) {
    for (because, expected) in [(Ending::Revoked, Ok(())), (Ending::RevokedByAdmin, Err(Refusal::SessionClosed))] {
        let (token, session) = (w.token(), w.hash());
        let ask = || w.binding(token, Some(session), None);
        let (lease, _) = w.exchange(ask()).await.expect("the first use");
        w.revoke(Targets::Leases(vec![lease]), because).await;
        assert_eq!(w.exchange(ask()).await.map(drop), expected, "{because:?}");
    }
}

async fn compare_and_set(w: &mut World) {
    let (lease, _) = w.fresh().await;
    let was = w.state(lease).await;
    let other = State::Active { expires_at: w.now() + LIFETIME };
    let revoking = State::Revoking { attempts: 0, next_at: w.now(), certain_at: None, because: Ending::Revoked };
    for (from, to, expected) in [
        (other.clone(), revoking.clone(), false),
        (was.clone(), revoking.clone(), true),
        (was, other, false),
        (revoking.clone(), State::Ended { how: Ending::Revoked, at: w.now() }, true),
        (revoking.clone(), revoking, false),
    ] {
        let entries = w.audit().await.len();
        let entry = Entry::new(w.now(), Event::Ended);
        let answer = w.store.transition(lease, from.clone(), to, None, Some(entry)).await.expect("the store works");
        assert_eq!(answer, expected, "from {from:?}");
        assert_eq!(w.audit().await.len() - entries, usize::from(expected), "an entry for each change");
    }
}

async fn keeps(w: &mut World) {
    let text = |n: u8| Sealed::stored(&[n; 40]);
    let mut ids = Vec::new();
    for n in 0..5 {
        let by = Entitlement::Token(w.binding(w.token(), None, None));
        let opening = w.opening(by, w.pending(), Revocability::ByToken);
        let (id, waiting) = (opening.lease.id(), w.pending());
        let Opened::Yes { value, .. } = w.store.open_pending(opening).await.expect("opens") else { panic!("refused") };
        value.keep(text(99));
        value.keep(text(n));
        assert_eq!(value.kept(), Some(text(n)), "the last one counts");
        assert_eq!(w.store.lease(id).await.expect("reads").expect("is there").sealed(), None);
        let kept = value.kept();
        let lost = w.store.transition(id, w.active(), w.active(), kept.clone(), None).await.expect("the store works");
        assert!(!lost && w.store.sealed(None, 9).await.expect("reads").len() == ids.len(), "nothing without the state");
        assert!(w.store.transition(id, waiting, w.active(), kept, None).await.expect("the store works"));
        ids.push(id);
    }
    let kept = async |w: &World, id: LeaseId| {
        w.store.lease(id).await.expect("reads").and_then(|lease| lease.sealed().cloned())
    };
    w.reopen().await;
    assert_eq!(kept(w, ids[2]).await, Some(text(2)), "it is durable");
    for (after, limit, expected) in [(None, 2, &ids[..2]), (Some(ids[1]), 9, &ids[2..]), (Some(ids[4]), 9, &[])] {
        let listed = w.store.sealed(after, limit).await.expect("reads");
        assert_eq!(listed.iter().map(Lease::id).collect::<Vec<_>>(), expected);
    }
    // On its way out it keeps what it has, whatever comes along, and nothing once it ended.
    let leaving = State::take_back_now(w.now(), Ending::Revoked);
    let ended = State::Ended { how: Ending::Revoked, at: w.now() };
    w.store.transition(ids[0], w.active(), leaving.clone(), Some(text(9)), None).await.expect("the store works");
    assert_eq!(kept(w, ids[0]).await, Some(text(0)));
    w.store.transition(ids[0], leaving, ended, None, None).await.expect("the store works");
    assert_eq!(kept(w, ids[0]).await, None);
    let changes = vec![(ids[0], text(0), text(9)), (ids[1], text(1), text(9)), (ids[2], text(7), text(9))];
    assert_eq!(w.store.reseal(changes).await.expect("the store works"), 1, "where it keeps what was read");
    assert_eq!((kept(w, ids[1]).await, kept(w, ids[2]).await), (Some(text(9)), Some(text(2))));
    assert_eq!(w.store.seal_check().await.expect("reads"), None);
    for n in [1, 2] {
        w.store.set_seal_check(text(n)).await.expect("the store works");
        w.reopen().await;
        assert_eq!(w.store.seal_check().await.expect("reads"), Some(text(n)));
    }
}

async fn agenda(w: &mut World) {
    let backend = |name| BackendName::parse(name).expect("a name");
    assert!(w.store.agenda().await.expect("reads").is_empty());
    let mut ids = Vec::new();
    for (name, revocability, outliving) in [
        ("ledger", Revocability::ByName, false),
        ("aws", Revocability::None, false),
        ("aws", Revocability::None, true),
        ("own", Revocability::None, false),
    ] {
        let by = Entitlement::Token(w.binding(w.token(), None, None));
        let mut opening = w.opening(by, w.active(), revocability);
        opening.lease.placement.backend = backend(name);
        if outliving {
            let (why, because) = (Outlives::Irrevocable, Ending::RevokedByAdmin);
            opening.lease.state = State::Outliving { until: w.now() + TTL, why, because };
        }
        ids.push(opening.lease.id());
        assert!(matches!(w.store.open_active(opening).await, Ok(Opened::Yes { .. })));
        w.clock.advance(Duration::from_secs(1));
    }
    let agenda = w.store.agenda().await.expect("reads");
    assert_eq!(agenda.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["aws", "ledger", "own"]);
    for (name, expected) in [("aws", &ids[2..3]), ("ledger", &[])] {
        assert_eq!(w.store.outliving(backend(name)).await.expect("reads"), expected, "{name}");
    }
    let due = |name, limit| w.store.due(backend(name), w.now(), limit);
    assert!(due("aws", 9).await.expect("reads").is_empty(), "nothing is due yet");
    w.clock.advance(TTL);
    let first = due("aws", 1).await.expect("reads");
    assert_eq!(first.iter().map(Lease::id).collect::<Vec<_>>(), [ids[1]], "most overdue first");
    for (name, expected) in [("aws", 2), ("aws", 0), ("ledger", 0), ("own", 1), ("unknown", 0)] {
        assert_eq!(w.store.expire(backend(name), w.now()).await.expect("writes"), expected, "{name}");
    }
    assert_eq!(over(&w.state(ids[1]).await), Some(Ending::Expired));
    assert_eq!(over(&w.state(ids[2]).await), Some(Ending::RevokedByAdmin));
    let left = w.store.agenda().await.expect("reads");
    assert_eq!(left.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["ledger"]);
    assert_eq!(w.audited("ended").await, 2, "one entry for each time that leases ended by themselves");
}

async fn listings(w: &mut World) {
    let (first, _) = w.fresh().await;
    let (second, _) = w.fresh().await;
    let was = w.state(first).await;
    let ended = State::Ended { how: Ending::Revoked, at: w.now() };
    w.store.transition(first, was, ended, None, None).await.expect("writes");
    let grant = |name| Some(GrantName::parse(name).expect("a name"));
    let issuer = |name| Some(IssuerName::parse(name).expect("a name"));
    let claim = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    for (filter, expected) in [
        (Filter::default(), vec![second]),
        (Filter { ended: true, ..Filter::default() }, vec![second, first]),
        (Filter { ended: true, before: Some(second), ..Filter::default() }, vec![first]),
        (Filter { ended: true, before: Some(first), ..Filter::default() }, vec![]),
        (Filter { grant: grant("deploy-prod"), ..Filter::default() }, vec![second]),
        (Filter { grant: grant("other"), ended: true, ..Filter::default() }, vec![]),
        (Filter { issuer: issuer("github"), ..Filter::default() }, vec![second]),
        (Filter { issuer: issuer("gitlab"), ..Filter::default() }, vec![]),
        (Filter { claims: claim("repository", "acme/api"), ..Filter::default() }, vec![second]),
        (Filter { claims: claim("run_id", "42"), ..Filter::default() }, vec![second]),
        (Filter { claims: claim("run_id", "4"), ..Filter::default() }, vec![]),
        (Filter { claims: claim("absent", "null"), ..Filter::default() }, vec![]),
    ] {
        let found = w.store.leases(filter.clone(), 10).await.expect("lists");
        assert_eq!(found.iter().map(Lease::id).collect::<Vec<_>>(), expected, "{filter:?}");
    }
    let all = Filter { ended: true, ..Filter::default() };
    assert_eq!(w.store.leases(all, 1).await.expect("lists").len(), 1);
}

async fn freezes(w: &mut World) {
    let grant = GrantName::parse("deploy-prod").expect("a name");
    let issuer = IssuerName::parse("github").expect("a name");
    let freeze = |target, reason: Option<&str>| {
        let entry = Entry::new(w.now(), Event::Freeze);
        w.store.freeze(target, reason.map(str::to_owned), entry)
    };
    freeze(FreezeTarget::All, Some("fire")).await.expect("freezes");
    freeze(FreezeTarget::Grant(grant.clone()), Some("smoke")).await.expect("freezes");
    freeze(FreezeTarget::Issuer(issuer.clone()), Some("flood")).await.expect("freezes");
    freeze(FreezeTarget::All, None).await.expect("thaws");
    w.reopen().await;
    let freezes = w.store.freezes().await.expect("reads");
    assert_eq!(freezes.all, None);
    assert_eq!(freezes.grants.get(&grant).map(String::as_str), Some("smoke"));
    assert_eq!(freezes.issuers.get(&issuer).map(String::as_str), Some("flood"));
    assert_eq!(w.audited("freeze").await, 4);
}

async fn folds(w: &mut World) {
    let (one, other) = (w.hash(), w.hash());
    let deny = |key| w.store.record(Entry::new(w.now(), Event::Denied), Some(Fold::alone(key)));
    for _ in 0..5 {
        deny(one).await.expect("records");
    }
    deny(other).await.expect("records");
    assert_eq!(w.audited("denied").await, 2, "the first of each kind");
    w.clock.advance(Duration::from_secs(60));
    // Any verb brings the writer to it; an idle one comes to it by itself.
    w.store.record(Entry::new(w.now(), Event::Server), None).await.expect("records");
    let denied = |lines: &[Line]| {
        let counted = lines.iter().filter(|line| line.entry.contains("\"event\":\"denied\""));
        counted.map(|line| line.entry.split_once("\"count\":").map(|(_, count)| count.to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(denied(&w.audit().await), [None, None, Some("4}".to_owned())]);
    deny(one).await.expect("records");
    deny(one).await.expect("records");
    w.reopen().await;
    let lines = denied(&w.audit().await);
    assert_eq!(lines[3..], [None, Some("1}".to_owned())], "a new minute, cut short by the end");
    for _ in 0..2 {
        let entry = Entry::new(w.now(), Event::Denied);
        w.store.record(entry, Some(Fold::alone(one))).await.expect("records");
        w.clock.set(w.now() - Duration::from_secs(24 * 3600));
    }
    assert_eq!(denied(&w.audit().await)[5..], [None, None], "a minute ends when the clock is set back");

    // Somebody who comes with something else each time.
    let kinds = w.audited("denied").await;
    for of in [w.hash(), w.hash()] {
        for _ in 0..300 {
            let mut entry = Entry::new(w.now(), Event::Denied);
            entry.grant = GrantName::parse("invented").ok();
            w.store.record(entry, Some(Fold { key: w.hash(), of })).await.expect("records");
        }
    }
    let written = w.audited("denied").await - kinds;
    assert!(written <= 2 * 9, "{written} entries");
    w.reopen().await;
    let lines = w.audit().await;
    let rest = &lines[lines.len() - 2..];
    assert!(
        rest.iter().all(|line| line.entry.contains("\"count\":291") && !line.entry.contains("invented")),
        "{rest:?}"
    );
}

async fn pruning(w: &mut World) {
    let (lease, handle) = w.fresh().await;
    let (open, _) = w.fresh().await;
    let rotation = Rotation { lease, presented: handle, request: None };
    w.renew(&rotation, w.active()).await.expect("renews");
    let was = w.state(lease).await;
    let ended = State::Ended { how: Ending::Revoked, at: w.now() };
    w.store.transition(lease, was, ended, None, None).await.expect("writes");
    assert_eq!(w.store.prune(w.now()).await.expect("prunes"), 0, "nothing is old");
    let token = w.token();
    w.exchange(w.binding(token, None, None)).await.expect("the first use");
    // A token is kept past its expiry, because clocks differ.
    w.clock.advance(TTL + LIFETIME);
    assert_eq!(w.store.prune(w.now()).await.expect("prunes"), 0);
    assert_eq!(w.exchange(w.binding(token, None, None)).await, Err(Refusal::Spent));
    w.clock.advance(Duration::from_secs(2));
    assert_eq!(w.store.prune(w.now()).await.expect("prunes"), 3, "three tokens");
    w.reopen().await;
    // By a clock that was set back the token is young again.
    let later = TokenKey { expires: token.expires + 1, ..w.token() };
    assert_eq!(w.exchange(w.binding(token, None, None)).await, Err(Refusal::Spent), "forgotten, and not forgiven");
    w.exchange(w.binding(later, None, None)).await.expect("a token that expired later was never forgotten");
    w.clock.advance(Duration::from_secs(400 * 24 * 3600));
    assert_eq!(w.store.prune(w.now()).await.expect("prunes"), 3, "a lease, its spent handle, the later token");
    assert!(w.store.lease(lease).await.expect("reads").is_none());
    assert!(w.store.lease(open).await.expect("reads").is_some(), "what did not end is never forgotten");
    let entries = w.audit().await.len();
    let head = w.store.audit_head().borrow().seq;
    w.store.set_streamed("file".into(), head).await.expect("writes");
    assert_eq!(w.store.streamed("file".into()).await.expect("reads"), Some(head));
    assert_eq!(w.store.streamed("other".into()).await.expect("reads"), None);
    // A stream that is gone holds nothing up; one that is new does.
    w.store.set_streamed("other".into(), 0).await.expect("writes");
    for (streams, pruned) in [(vec![], 0), (vec!["file", "new"], 0), (vec!["file"], entries - 1)] {
        w.store.keep_for_streams(streams.clone()).await.expect("writes");
        assert_eq!(w.store.prune(w.now()).await.expect("prunes"), pruned, "all but the last for {streams:?}");
        w.store.set_streamed("file".into(), head).await.expect("writes");
    }
    w.reopen().await;
    let last = w.store.audit(0, 10).await.expect("reads");
    w.store.record(Entry::new(w.now(), Event::Server), None).await.expect("records");
    let next = w.store.audit(head, 10).await.expect("reads");
    assert!(last.is_empty(), "an entry whose predecessor is forgotten has no place to show");
    assert_eq!(next[0].link.seq, head + 1, "the chain goes on");
}

async fn failures_stay_alone(w: &mut World) {
    let (twice, _) = w.fresh().await;
    let world = &*w;
    let openings = (0..40).map(|turn| {
        let by = Entitlement::Token(world.binding(world.token(), None, None));
        let mut opening = world.opening(by, world.active(), Revocability::ByName);
        if turn % 10 == 3 {
            opening.lease.id = twice;
            opening.lease.family.root = twice;
        }
        async move { (turn, world.store.open_active(opening).await) }
    });
    for (turn, answer) in join_all(openings).await {
        assert_eq!(answer.is_err(), turn % 10 == 3, "{turn}: {answer:?}");
    }
    assert_eq!(w.audited("permitted").await, 37);
    w.store.check().expect("such a failure is not the store's");
}

async fn survives(w: &mut World) {
    let (token, session) = (w.token(), w.hash());
    let binding = w.binding(token, Some(session), None);
    let (lease, handle) = w.exchange(binding.clone()).await.expect("the first use");
    w.reopen().await;
    assert!(matches!(w.store.held(lease, handle).await, Ok(Held::Current(_))));
    assert_eq!(w.exchange(w.binding(token, Some(w.hash()), None)).await, Err(Refusal::Spent));
    w.exchange(binding).await.expect("the holder");
    assert_eq!(w.audit().await.len(), 2);
    w.store.close().await;
    assert!(w.store.record(Entry::new(w.now(), Event::Server), None).await.is_err(), "it is closed");
}
