use proptest::prelude::*;

use super::*;
use crate::function::PciAddress;

fn pool() -> PoolName {
    PoolName("vf".to_owned())
}

fn place(bus: u8, function: u8, numa_node: u32) -> Place {
    let physical = PciAddress {
        domain: 0,
        bus,
        device: 0,
        function: 0,
    };
    Place {
        address: PciAddress {
            device: 1,
            function,
            ..physical
        },
        physical,
        bridges: Vec::new(),
        numa_node: Some(numa_node),
    }
}

fn offer(number: u8) -> Offer {
    Offer {
        id: format!("vf{number}"),
        place: place(0x3b, number % 8, 0),
        marks: Marks {
            mac: Some(format!("02:00:00:00:00:{number:02x}")),
            node_guid: None,
        },
        health: Health::Healthy,
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn pod(name: &str) -> Pod {
    let (namespace, name) = ("ns".to_owned(), name.to_owned());
    Pod { namespace, name }
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn named(names: &[(&str, &str)]) -> HashMap<(PoolName, String), Pod> {
    let named = names.iter();
    named
        .map(|(id, name)| ((pool(), (*id).to_owned()), pod(name)))
        .collect()
}

fn book() -> Book {
    let mut book = Book::new([pool()], Vec::new());
    book.see(&pool(), (0..4).map(offer).collect());
    book
}

fn healthy(book: &Book) -> Vec<String> {
    let shown = book.shown(&pool()).into_iter();
    let healthy = shown.filter(|it| it.health == Health::Healthy);
    healthy.map(|it| it.id).collect()
}

#[test]
fn devices_are_given_all_or_none_and_once() {
    let mut book = book();
    let first = book.allocate(&pool(), &ids(&["vf0", "vf1"]), at(0));
    assert_eq!(first, Ok(vec![offer(0), offer(1)]));
    let refused = |book: &mut Book, asked: &[&str]| {
        let before = book.held();
        let refusal = book.allocate(&pool(), &ids(asked), at(1));
        assert_eq!(book.held(), before, "nothing is given by halves");
        refusal.expect_err("refused")
    };
    let held = refused(&mut book, &["vf2", "vf1"]);
    assert!(matches!(held, Refusal::Held { .. }));
    let unknown = refused(&mut book, &["vf2", "vf9"]);
    assert!(matches!(unknown, Refusal::Unknown { .. }));
    let twice = refused(&mut book, &["vf2", "vf2"]);
    assert!(matches!(twice, Refusal::Malformed(_)));
    assert!(matches!(refused(&mut book, &[]), Refusal::Malformed(_)));
    let elsewhere = book.allocate(&PoolName("other".into()), &ids(&["vf2"]), at(1));
    assert!(matches!(elsewhere, Err(Refusal::Unknown { .. })));
}

#[test]
fn a_device_in_a_pods_namespace_stays_in_capacity_also_through_a_restart() {
    let mut book = book();
    book.allocate(&pool(), &ids(&["vf1"]), at(0)).expect("free");
    book.reconcile(&named(&[("vf1", "a")]), at(1));
    book.see(&pool(), vec![offer(0), offer(2), offer(3)]);
    assert_eq!(healthy(&book), ["vf0", "vf1", "vf2", "vf3"]);
    let mut book = Book::new([pool()], book.held());
    book.see(&pool(), vec![offer(0), offer(2), offer(3)]);
    assert_eq!(healthy(&book), ["vf0", "vf1", "vf2", "vf3"]);
    let refusal = book.allocate(&pool(), &ids(&["vf1"]), at(2));
    let said = refusal.expect_err("held").to_string();
    assert!(said.contains("ns/a"), "{said}");
}

#[test]
fn a_device_comes_back_when_it_is_as_it_was_and_works() {
    let mut book = book();
    book.allocate(&pool(), &ids(&["vf1"]), at(0)).expect("free");
    // Not named yet is not ended.
    book.reconcile(&named(&[]), at(10));
    assert!(book.shown(&pool())[1].holder.is_some());
    book.reconcile(&named(&[("vf1", "a")]), at(11));
    book.see(&pool(), vec![offer(0), offer(2), offer(3)]);
    book.reconcile(&named(&[]), at(12));
    assert_eq!(healthy(&book), ["vf0", "vf2", "vf3"], "it is not back");
    assert!(book.to_probe().is_empty());

    let mut dirty = offer(1);
    dirty.marks.mac = Some("02:00:00:00:00:ff".into());
    book.see(&pool(), vec![dirty, offer(0), offer(2), offer(3)]);
    let Health::Unhealthy(why) = &book.shown(&pool())[1].health else {
        panic!("it is given with another MAC");
    };
    assert!(why.contains("02:00:00:00:00:ff"), "{why}");
    assert!(book.to_probe().is_empty());

    book.see(&pool(), (0..4).map(offer).collect());
    assert_eq!(healthy(&book), ["vf0", "vf2", "vf3"], "nobody tried it");
    assert_eq!(book.to_probe(), [(pool(), offer(1))]);
    book.probed(&pool(), "vf1");
    assert_eq!(healthy(&book), ["vf0", "vf1", "vf2", "vf3"]);
    assert!(book.held().is_empty());
}

#[test]
fn an_allocation_that_no_pod_ever_had_is_taken_back() {
    let mut book = book();
    book.allocate(&pool(), &ids(&["vf1"]), at(0)).expect("free");
    book.reconcile(&named(&[]), at(59));
    assert!(book.to_probe().is_empty());
    book.reconcile(&named(&[]), at(61));
    assert_eq!(book.to_probe().len(), 1);
}

#[test]
fn devices_of_several_rails_on_one_numa_node_are_preferred_in_the_rails_order() {
    let rails = [(0x3b, 0), (0x5e, 0), (0x86, 1), (0xaf, 1), (0xd8, 1)];
    let places = rails
        .into_iter()
        .flat_map(|(bus, numa)| (0..2).map(move |n| (format!("{bus:x}-{n}"), place(bus, n, numa))));
    let places: Vec<(String, Place)> = places.collect();
    let available: Vec<_> = places.iter().map(|(id, at)| (id.as_str(), at)).collect();
    let chosen = |must: &[&str], size| prefer(&available, must, size);
    assert_eq!(chosen(&[], 1), Some(ids(&["3b-0"])));
    assert_eq!(chosen(&[], 2), Some(ids(&["3b-0", "5e-0"])));
    assert_eq!(chosen(&[], 3), Some(ids(&["86-0", "af-0", "d8-0"])));
    let all_rails = ids(&["3b-0", "5e-0", "86-0", "af-0", "d8-0"]);
    assert_eq!(chosen(&[], 5), Some(all_rails));
    assert_eq!(chosen(&["af-1"], 2), Some(ids(&["86-0", "af-1"])));
    assert_eq!(chosen(&[], 10).map(|all| all.len()), Some(10));
    assert_eq!(chosen(&[], 11), None);
    assert_eq!(chosen(&["nowhere"], 1), None);
    assert_eq!(chosen(&["af-1", "af-0"], 1), None);
}

#[derive(Clone, Debug)]
enum Event {
    See(Vec<u8>),
    Allocate(Vec<u8>),
    Name(u8, u8),
    Ends(u8),
    Reconcile(u64),
    Probe,
    Restart,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let devices = || prop::collection::vec(0..5u8, 0..5);
    let event = prop_oneof![
        devices().prop_map(Event::See),
        prop::collection::vec(0..6u8, 0..3).prop_map(Event::Allocate),
        (0..5u8, 0..3u8).prop_map(|(device, pod)| Event::Name(device, pod)),
        (0..5u8).prop_map(Event::Ends),
        (0..50u64).prop_map(Event::Reconcile),
        Just(Event::Probe),
        Just(Event::Restart),
    ];
    prop::collection::vec(event, 0..60)
}

proptest! {
    /// With a kubelet as it is: it knows who has what, and names it within the time it has for that.
    #[test]
    fn nothing_is_given_twice_and_nothing_is_lost(events in events()) {
        let mut book = Book::new([pool()], Vec::new());
        let mut now = 0;
        // Since when somebody has it, and the pod once kubelet names it.
        let mut truth: BTreeMap<String, (u64, Option<Pod>)> = BTreeMap::new();
        for event in events {
            match event {
                Event::See(devices) => book.see(&pool(), devices.into_iter().map(offer).collect()),
                Event::Allocate(devices) => {
                    let asked: Vec<_> = devices.iter().map(|n| format!("vf{n}")).collect();
                    let free = asked.iter().all(|id| !truth.contains_key(id));
                    if book.allocate(&pool(), &asked, at(now)).is_ok() {
                        prop_assert!(free, "{asked:?} is given twice");
                        truth.extend(asked.into_iter().map(|id| (id, (now, None))));
                    }
                }
                Event::Name(device, number) => {
                    if let Some((_, named)) = truth.get_mut(&format!("vf{device}")) {
                        named.get_or_insert(pod(&format!("p{number}")));
                    }
                }
                Event::Ends(device) => {
                    truth.remove(&format!("vf{device}"));
                }
                Event::Reconcile(later) => {
                    now += later;
                    for (since, named) in truth.values_mut() {
                        if now - *since > GRACE.as_secs() {
                            named.get_or_insert(pod("late"));
                        }
                    }
                    let named = truth
                        .iter()
                        .filter_map(|(id, (_, pod))| Some(((pool(), id.clone()), pod.clone()?)));
                    book.reconcile(&named.collect(), at(now));
                }
                Event::Probe => {
                    for (pool, offer) in book.to_probe() {
                        prop_assert!(!truth.contains_key(&offer.id), "a pod's device is probed");
                        book.probed(&pool, &offer.id);
                    }
                }
                Event::Restart => book = Book::new([pool()], book.held()),
            }
            let shown = book.shown(&pool());
            for id in truth.keys() {
                let held = shown.iter().any(|it| it.id == *id && it.holder.is_some());
                prop_assert!(held, "{id} is lost");
            }
        }
        // When all is over, everything that is there can be given again.
        book.reconcile(&HashMap::new(), at(now + 100));
        book.see(&pool(), (0..5).map(offer).collect());
        for (pool, offer) in book.to_probe() {
            book.probed(&pool, &offer.id);
        }
        prop_assert_eq!(healthy(&book).len(), 5);
        prop_assert!(book.held().is_empty());
    }
}
