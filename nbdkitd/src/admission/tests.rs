use super::*;
use nbdkit_ipc::messages::{Peer, PeerAddress};

fn peer(address: &str) -> Peer {
    let address = PeerAddress::Inet(address.parse().unwrap());
    Peer { address, credentials: None, security_context: None }
}

fn key(address: &str) -> PeerKey {
    PeerKey::from(&peer(address))
}

/// So many of each, numbered from 1, whose workers are known.
fn table(peers: &[(&str, usize)]) -> Connections {
    let mut table = Connections::default();
    let all = peers.iter().flat_map(|(address, count)| std::iter::repeat_n(*address, *count));
    for (number, address) in (1..).zip(all) {
        table.add(number, peer(address), None, false, Instant::now());
        let pid = i32::try_from(number).unwrap() + 1;
        table.forked(number, pid, nbdkit_ipc::messages::Isolation::Connection).unwrap();
    }
    table
}

fn admission(total: u32, per_peer: u32) -> Admission {
    Admission::new(Some(total), Some(per_peer), Instant::now())
}

/// What is decided about clients of these peers that wait.
fn next(
    admission: &Admission,
    table: &Connections,
    waiting: &[&str],
    now: Instant,
) -> Option<(PeerKey, Decision)> {
    let mut queue = Waiting::new(1000);
    for address in waiting {
        assert_eq!(queue.push(key(address), ()), None);
    }
    admission.next(table, &queue, now)
}

fn decide(admission: &Admission, table: &Connections, of: &str, now: Instant) -> Decision {
    next(admission, table, &[of], now).unwrap().1
}

const A: &str = "10.0.0.1:1000";
const B: &str = "10.0.0.2:1000";
const C: &str = "10.0.0.3:1000";

#[test]
fn a_peer_with_its_share_of_handshakes_loses_its_own_oldest_in_time() {
    let admission = admission(256, 0);
    let mut table = table(&[(B, 1), (A, 32)]);
    let since = table.get_mut(2).unwrap().since;
    assert_eq!(decide(&admission, &table, B, since), Decision::Admit);
    assert_eq!(decide(&admission, &table, A, since), Decision::Wait(Some(since + OWN_TIME)));
    assert_eq!(decide(&admission, &table, A, since + OWN_TIME), Decision::Evict(2));
}

#[test]
fn a_newcomer_is_next_however_many_wait_already() {
    let admission = admission(256, 0);
    let mut table = table(&[(A, 32), (B, 16)]);
    let since = table.get_mut(1).unwrap().since;
    let found = next(&admission, &table, &[A, A, A, B, B, C], since);
    assert_eq!(found, Some((key(C), Decision::Admit)));
    assert_eq!(next(&admission, &table, &[], since), None);
}

#[test]
fn of_all_handshakes_old_enough_the_greediest_peers_is_evicted() {
    let admission = admission(256, 0);
    let mut table = table(&[(A, 16), (B, 24), ("10.0.0.4:1", 12), ("10.0.0.5:1", 12)]);
    let now = Instant::now() + HANDSHAKE_TIME;
    assert_eq!(decide(&admission, &table, C, now), Decision::Evict(17));
    // The greediest peer's are all too young: another's takes its place, and the newcomer does not
    // wait.
    for number in 17..=40 {
        table.get_mut(number).unwrap().since = now;
    }
    assert_eq!(decide(&admission, &table, C, now), Decision::Evict(1));
    for (number, _) in table.iter().map(|(number, it)| (number, it.key)).collect::<Vec<_>>() {
        table.get_mut(number).unwrap().since = now;
    }
    assert_eq!(decide(&admission, &table, C, now), Decision::Wait(Some(now + HANDSHAKE_TIME)));
    // A peer that has as many itself has to wait for longer.
    assert_eq!(decide(&admission, &table, B, now), Decision::Wait(Some(now + OWN_TIME)));
}

#[test]
fn clients_for_which_the_template_has_named_no_worker_are_few() {
    let admission = admission(0, 0);
    let mut table = Connections::default();
    let now = Instant::now();
    for number in 1..=MOST_UNFORKED as u64 {
        assert_eq!(decide(&admission, &table, A, now), Decision::Admit);
        table.add(number, peer(A), None, true, now);
    }
    assert_eq!(decide(&admission, &table, B, now), Decision::Wait(None));
}

#[test]
fn finished_and_evicted_connections_do_not_count_as_handshakes() {
    let admission = admission(256, 0);
    let mut table = table(&[(A, 32)]);
    let late = Instant::now() + OWN_TIME;
    table.get_mut(1).unwrap().serving(String::new(), None).unwrap();
    assert_eq!(decide(&admission, &table, A, late), Decision::Admit);
    table.add(33, peer(A), None, false, Instant::now());
    assert_eq!(decide(&admission, &table, A, late), Decision::Evict(2));
    table.get_mut(2).unwrap().evicted = true;
    assert_eq!(decide(&admission, &table, A, late), Decision::Admit);
}

#[test]
fn a_peer_is_an_address_a_network_a_user_or_a_machine() {
    let table = table(&[("[2001:db8::1]:1", 1), ("[::ffff:10.0.0.1]:1", 1)]);
    let nobody: Waiting<()> = Waiting::new(1);
    let refused = |address| admission(0, 1).is_over_limit(&table, &nobody, key(address));
    assert!(refused("[2001:db8::ffff]:2") && refused(A));
    assert!(!refused("[2001:db8:0:1::1]:1") && !refused(B));
    let user = |uid| Peer {
        address: PeerAddress::Unix,
        credentials: Some((7, uid, 0)),
        security_context: None,
    };
    assert_ne!(PeerKey::from(&user(1)), PeerKey::from(&user(2)));
    let machine = |cid| Peer {
        address: PeerAddress::Vsock { cid, port: 1 },
        credentials: None,
        security_context: None,
    };
    assert_ne!(PeerKey::from(&machine(3)), PeerKey::from(&machine(4)));
}

#[test]
fn one_address_gets_half_of_many_slots_by_default() {
    let table = table(&[(A, 500)]);
    let over = |total, per_peer, of, waiting: usize| {
        let admission = Admission::new(total, per_peer, Instant::now());
        let mut queue = Waiting::new(1000);
        for _ in 0..waiting {
            assert_eq!(queue.push(key(of), ()), None);
        }
        admission.is_over_limit(&table, &queue, key(of))
    };
    assert!(!over(None, None, A, 11) && over(None, None, A, 12));
    assert!(!over(None, None, B, 0) && over(None, None, B, 512));
    assert!(over(Some(1000), None, A, 0) && !over(Some(1002), None, A, 0));
    for unlimited in [over(Some(0), None, A, 500), over(None, Some(0), A, 500)] {
        assert!(!unlimited);
    }
    assert!(over(None, Some(500), A, 0) && !over(None, Some(501), A, 0));
    // Few slots have no limit for one peer, nor have users of Unix sockets.
    assert!(!over(Some(127), None, A, 0));
    let admission = Admission::new(None, None, Instant::now());
    let mut queue = Waiting::new(2000);
    let user = PeerKey::User(0);
    for _ in 0..1000 {
        assert_eq!(queue.push(user, ()), None);
    }
    assert!(!admission.is_over_limit(&table, &queue, user));
}

#[test]
fn zero_is_no_limit_and_the_default_is_one() {
    let full = table(&[(A, 1024)]);
    assert!(!admission(0, 0).is_full(&full, Instant::now()));
    assert!(Admission::new(None, None, Instant::now()).is_full(&full, Instant::now()));
    assert!(!admission(1025, 0).is_full(&full, Instant::now()));
}

#[test]
fn where_descriptors_are_few_so_are_clients() {
    let now = Instant::now();
    let mut admission = Admission::new(None, None, now);
    assert_eq!(admission.clamp(1024), None);
    assert_eq!(admission.clamp(500), Some(1024));
    assert_eq!(admission.total(), Some(500));
    assert!(admission.is_over_limit(&table(&[(A, 250)]), &Waiting::<()>::new(1), key(A)));
    let mut few = Admission::new(Some(0), None, now);
    assert_eq!(few.clamp(3), None);
    assert!(few.is_full(&table(&[(A, 3)]), now));
}

#[test]
fn a_handshake_that_takes_long_gives_up_the_last_place() {
    let admission = admission(2, 0);
    let mut table = table(&[(A, 2)]);
    table.get_mut(1).unwrap().serving(String::new(), None).unwrap();
    let since = table.get_mut(2).unwrap().since;
    let late = since + EVICTION_AGE;
    assert!(admission.is_full(&table, since) && !admission.is_full(&table, late));
    assert_eq!(admission.next_slot(&table), Some(late));
    assert_eq!(decide(&admission, &table, B, since), Decision::Wait(Some(late)));
    assert_eq!(decide(&admission, &table, B, late), Decision::Evict(2));
    table.get_mut(2).unwrap().serving(String::new(), None).unwrap();
    assert!(admission.is_full(&table, late));
    assert_eq!(decide(&admission, &table, B, late), Decision::Wait(None));
    assert_eq!(admission.next_slot(&table), None);
}

#[test]
fn that_all_places_are_taken_is_reported_once_a_minute() {
    let now = Instant::now();
    let mut admission = admission(5, 0);
    assert!(admission.report_full(now).unwrap().starts_with("5 clients"));
    assert_eq!(admission.report_full(now + Duration::from_secs(59)), None);
    assert!(admission.report_full(now + LOG_INTERVAL).is_some());
}
