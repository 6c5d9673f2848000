use super::*;

const EVERY: Duration = Duration::from_secs(30);

fn moment(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn node(name: &str, beat: i64) -> CacheNode {
    let object = serde_json::json!({ "apiVersion": "trackbed.io/v1", "kind": "CacheNode",
        "metadata": { "name": name }, "spec": { "address": format!("{name}:7420") },
        "status": { "heartbeat": moment(beat).to_string(), "reportEverySeconds": 30 } });
    serde_json::from_value(object).expect("a node")
}

fn view() -> View {
    let own = Member {
        name: "a".into(),
        control: "a:7420".into(),
        weight: 100,
    };
    View::new(own, EVERY, Remembered::default())
}

fn names(view: &View) -> Vec<String> {
    let mut names: Vec<_> = view
        .members()
        .into_iter()
        .map(|member| member.name)
        .collect();
    names.sort();
    names
}

fn three() -> View {
    let mut view = view();
    view.all_nodes(
        ["a", "b", "c"].map(|name| node(name, 1000)).into(),
        moment(1000),
    );
    view
}

#[test]
fn a_node_whose_heartbeats_stop_drops_out_and_comes_back_with_the_next() {
    let mut view = three();
    for beat in 1..=3 {
        let at = 1000 + beat * 30;
        view.node(node("a", at), moment(at));
        view.node(node("b", at), moment(at));
        assert_eq!(names(&view), ["a", "b", "c"], "it may miss some");
    }
    view.node(node("a", 1120), moment(1120));
    assert_eq!(names(&view), ["a", "b"]);
    view.node(node("c", 5), moment(1130));
    assert_eq!(names(&view), ["a", "b", "c"], "whatever its clock says");
}

#[test]
fn nobody_drops_out_while_the_api_server_is_away_or_says_things_twice() {
    let mut view = three();
    // An hour without a word, then the same heartbeats again, and a first one of ours.
    view.all_nodes(
        ["a", "b", "c"].map(|name| node(name, 1000)).into(),
        moment(4600),
    );
    assert_eq!(names(&view), ["a", "b", "c"]);
    view.node(node("a", 4630), moment(4630));
    for _ in 0..10 {
        view.node(node("a", 4630), moment(4640));
    }
    assert_eq!(names(&view), ["a", "b", "c"]);
}

#[test]
fn a_node_that_was_dead_long_before_this_one_started_is_no_member() {
    let mut view = view();
    view.all_nodes(vec![node("b", 1000), node("c", 4500)], moment(4600));
    assert_eq!(
        names(&view),
        ["a", "c"],
        "this node is one though it has no object yet"
    );
    view.node_gone("c");
    assert_eq!(names(&view), ["a"]);
}

#[test]
fn a_node_that_reports_less_often_may_miss_more() {
    let mut view = view();
    let mut slow = node("b", 1000);
    slow.status.as_mut().expect("a status").report_every_seconds = Some(90);
    view.all_nodes(vec![node("a", 1000), slow], moment(1000));
    for beat in 1..=9 {
        view.node(node("a", 1000 + beat * 30), moment(1000));
        assert_eq!(names(&view), ["a", "b"], "{beat}");
    }
    view.node(node("a", 9000), moment(1000));
    assert_eq!(names(&view), ["a"]);
}

#[test]
fn an_administrator_sets_the_weight() {
    let mut view = three();
    let mut drained = node("a", 1000);
    drained.spec.weight = Some(0);
    view.node(drained, moment(1000));
    let mut wrong = node("b", 1000);
    wrong.spec.weight = Some(-5);
    view.node(wrong, moment(1000));
    let weights: BTreeMap<_, _> = view
        .members()
        .into_iter()
        .map(|it| (it.name, it.weight))
        .collect();
    assert_eq!(
        weights,
        [("a".into(), 0), ("b".into(), 100), ("c".into(), 100)].into()
    );
}

fn dataset(
    namespace: &str,
    name: &str,
    spec: serde_json::Value,
    status: serde_json::Value,
) -> Dataset {
    let object = serde_json::json!({ "apiVersion": "trackbed.io/v1", "kind": "Dataset",
        "metadata": { "name": name, "namespace": namespace }, "spec": spec, "status": status });
    serde_json::from_value(object).expect("a dataset")
}

#[test]
fn a_dataset_is_known_by_its_namespace_too_and_read_by_that_and_those_it_is_shared_with() {
    let [old, new] = ["1", "2"].map(|text| Digest::of(text.as_bytes()).to_string());
    let status =
        serde_json::json!({ "version": new, "earlierVersions": [old], "origin": "file:///data" });
    let spec = |more: serde_json::Value| {
        let mut spec = serde_json::json!({ "origin": "file:///data" });
        spec.as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().unwrap_or_default());
        spec
    };
    let mut view = view();
    view.all_datasets(vec![
        dataset(
            "team-a",
            "cats",
            spec(serde_json::json!({ "sharedWith": ["team-c"] })),
            status.clone(),
        ),
        dataset(
            "team-b",
            "cats",
            spec(serde_json::json!({ "version": old })),
            status,
        ),
        dataset(
            "team-a",
            "new",
            spec(serde_json::json!({})),
            serde_json::Value::Null,
        ),
    ]);
    let record = |name: &str| view.record(&name.parse().expect("a name"));
    let (a, b) = (
        record("team-a.cats").expect("known"),
        record("team-b.cats").expect("known"),
    );
    assert_eq!(
        (a.version.to_string(), b.version.to_string()),
        (new.clone(), old.clone())
    );
    assert!(
        b.has_version(new.parse().expect("a digest")),
        "pinned to an old one, it had the new one"
    );
    assert!(a.admits(Some("team-a")) && a.admits(Some("team-c")) && !a.admits(Some("team-b")));
    assert!(!a.admits(None) && !b.admits(Some("team-a")));
    assert!(record("team-a.new").is_none(), "it has no version yet");
    assert_eq!(view.records().len(), 2);
}

#[test]
fn what_was_known_before_does_until_the_api_server_answers() {
    let mut before = three();
    let status =
        serde_json::json!({ "version": Digest::of(b"1").to_string(), "origin": "file:///data" });
    let spec = serde_json::json!({ "origin": "file:///data" });
    before.all_datasets(vec![dataset("team-a", "cats", spec, status)]);
    let remembered = before.to_remember();
    let text = serde_json::to_string(&remembered).expect("written");
    let remembered: Remembered = serde_json::from_str(&text).expect("read");
    let own = before
        .members()
        .into_iter()
        .find(|member| member.name == "a")
        .expect("there");
    let mut after = View::new(own, EVERY, remembered);
    assert_eq!(names(&after), ["a", "b", "c"]);
    assert_eq!(after.records(), before.records());
    after.all_datasets(Vec::new());
    after.all_nodes(vec![node("a", 1000)], moment(1000));
    assert_eq!((names(&after).len(), after.records().len()), (1, 0));
}

#[test]
fn a_watch_that_lags_behind_does_not_undo_what_was_just_written() {
    let dataset = |uid: &str, resource_version: &str, refresh: i64| {
        let object = serde_json::json!({ "apiVersion": "trackbed.io/v1", "kind": "Dataset",
            "metadata": { "name": "cats", "namespace": "team-a", "uid": uid,
                "resourceVersion": resource_version },
            "spec": { "origin": "s3://sets", "refresh": refresh } });
        serde_json::from_value(object).expect("a dataset")
    };
    let name = "team-a.cats".parse().expect("a name");
    let known = |view: &View| view.object(&name).map(|object| object.spec.refresh);
    let mut view = view();
    view.dataset(dataset("1", "100", 1));
    view.dataset(dataset("1", "99", 2));
    assert_eq!(known(&view), Some(1));
    view.dataset(dataset("1", "101", 3));
    assert_eq!(known(&view), Some(3));
    // Another object of the same name, and versions that are no numbers.
    view.dataset(dataset("2", "50", 4));
    assert_eq!(known(&view), Some(4));
    view.dataset(dataset("2", "x", 5));
    assert_eq!(known(&view), Some(5));
}
