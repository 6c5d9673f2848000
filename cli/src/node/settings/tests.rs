//! What is refused, and with which words.

use super::*;

fn flags(name: &str) -> Settings {
    Settings {
        name: Some(name.into()),
        registry: Some("/r".into()),
        cache_dir: Some(vec!["/c".into()]),
        tls_ca: Some("/ca".into()),
        tls_cert: Some("/cert".into()),
        tls_key: Some("/key".into()),
        ..Settings::default()
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let file = file("name: from-file\nmemory: 64MiB\nfabric: tcp\n");
    let config = resolve(flags("from-flag"), Some(file.path())).unwrap();
    assert_eq!(config.name, "from-flag");
    assert_eq!(config.memory, 64 << 20);
    assert_eq!(config.fabric, FabricChoice::Tcp);
    assert_eq!(config.control_listen.port(), 7420);
    assert_eq!(config.admin_socket.path(), Path::new("/c/admin.sock"));
}

#[test]
fn a_cache_has_one_folder_or_one_on_each_disk() {
    let with = |text: &str| {
        let mut flags = flags("n");
        flags.cache_dir = None;
        resolve(flags, Some(file(text).path()))
    };
    let one = with("cache-dir: /a\n").unwrap();
    assert_eq!(one.cache_dirs, [Path::new("/a")]);
    let several = with("cache-dir: [/a, /b]\n").unwrap();
    assert_eq!(several.cache_dirs, [Path::new("/a"), Path::new("/b")]);
    assert_eq!(several.admin_socket.path(), Path::new("/a/admin.sock"));
    for wrong in ["cache-dir: []\n", "cache-dir: {a: b}\n", ""] {
        let error = with(wrong).unwrap_err().to_string();
        assert!(
            error.contains("cache-dir") || error.contains("folder"),
            "{error}"
        );
    }
}

#[test]
fn an_unknown_key_is_refused_with_its_line() {
    let file = file("name: n\nmemory: 64MiB\ncache-capacty: 1TiB\n");
    let error = resolve(Settings::default(), Some(file.path()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("cache-capacty"), "{error}");
    assert!(error.contains("line 3"), "{error}");
}

#[test]
fn a_wrong_value_is_refused_with_its_line() {
    let file = file("name: n\nmemory: much\n");
    let error = resolve(Settings::default(), Some(file.path()))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("much") && error.contains("line 2"),
        "{error}"
    );
}

#[test]
fn quotas_are_read_from_flags_and_the_file_and_nonsense_is_refused() {
    let file = file("name: n\ncache-disk-percent: 80\ncache-quota: [team-a=1KiB, team-b=2KiB]\n");
    let config = resolve(flags("n"), Some(file.path())).unwrap();
    assert_eq!(config.cache_disk_percent, 80);
    let quotas: Vec<_> = config
        .cache_quotas
        .iter()
        .map(|(n, b)| (n.as_str(), *b))
        .collect();
    assert_eq!(quotas, [("team-a", 1024), ("team-b", 2048)]);
    for text in ["team-a", "Team=1", "a=much", "=1"] {
        assert!(text.parse::<Quota>().is_err(), "{text}");
    }
    let nonsense = Settings {
        cache_disk_percent: Some(0),
        ..flags("n")
    };
    assert!(resolve(nonsense, None).is_err());
}

#[test]
fn a_missing_setting_is_named_in_all_its_spellings() {
    let error = resolve(Settings::default(), None).unwrap_err().to_string();
    assert!(
        error.contains("--cache-dir") && error.contains("TRACKBED_CACHE_DIR"),
        "{error}"
    );
}

#[test]
fn a_name_that_no_certificate_can_carry_is_refused() {
    for name in ["", "Node", "a b", "-a", "a..b", &"a".repeat(64)] {
        assert!(resolve(flags(name), None).is_err(), "{name:?}");
    }
    resolve(flags("node-1.cluster.local"), None).unwrap();
}

#[test]
fn a_driver_that_is_not_served_is_not_registered() {
    let flags = Settings {
        kubelet_plugins_registry: Some("/registry".into()),
        ..flags("n")
    };
    let error = resolve(flags, None).unwrap_err().to_string();
    assert!(error.contains("--csi-endpoint"), "{error}");
}

#[test]
fn a_node_in_kubernetes_says_where_it_is_reached_and_needs_no_registry() {
    let flags = Settings {
        kubernetes: Some(true),
        registry: None,
        ..flags("n")
    };
    let error = resolve(flags.clone(), None).unwrap_err().to_string();
    assert!(error.contains("--control-advertise"), "{error}");
    let told = |address: &str| Settings {
        control_advertise: Some(address.into()),
        ..flags.clone()
    };
    let config = resolve(told("10.0.0.1:7420"), None).unwrap();
    assert_eq!(config.registry, Path::new("/c/registry"));
    assert_eq!(config.kubernetes.unwrap().address, "10.0.0.1:7420");
    for address in ["10.0.0.1", ":7420", "host:port", "host:0", ""] {
        assert!(resolve(told(address), None).is_err(), "{address:?}");
    }
    let shared = Settings {
        share_folders: Some(vec!["/mnt/../etc".into()]),
        ..told("10.0.0.1:7420")
    };
    assert!(resolve(shared, None).is_err());
}

#[test]
fn an_endpoint_that_is_no_unix_socket_is_refused() {
    let flags = Settings {
        csi_endpoint: Some("tcp://127.0.0.1:1".into()),
        ..flags("n")
    };
    let error = resolve(flags, None).unwrap_err().to_string();
    assert!(
        error.contains("--csi-endpoint") && error.contains("unix://"),
        "{error}"
    );
}
