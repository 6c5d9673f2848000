//! What ports must show, and what keeps a device from being given when they do not.

use std::time::{Duration, Instant};

use trackbed_deviceplugin::allocate::Health;
use trackbed_deviceplugin::config::Config;
use trackbed_deviceplugin::discover::Discovery;
use trackbed_deviceplugin::offer::offers;
use trackbed_deviceplugin::port_watch::PortWatch;
use trackbed_tests::machine::{Adapter, Machine};

const ROCE: Adapter = Adapter::ROCE;

/// A machine with one virtual function, looked at as time goes on.
struct Seen {
    machine: Machine,
    config: Config,
    watched: PortWatch,
    begin: Instant,
}

impl Seen {
    fn new(expect: &str) -> Seen {
        let machine = Machine::new();
        machine.adapter(&ROCE, 0);
        machine.virtual_functions(&ROCE, 1, 1);
        let config = format!("pools: [{{name: vf, expect: {{{expect}}}}}]");
        Seen {
            config: Config::parse(&config).expect("valid"),
            watched: PortWatch::new(machine.root()),
            begin: Instant::now(),
            machine,
        }
    }

    fn port_file(&self, file: &str, text: &str) {
        self.machine.port_file(&ROCE, &ROCE.vf(0), 1, file, text);
    }

    fn health_after(&mut self, seconds: u64) -> Health {
        let found = Discovery::new(self.machine.root()).look().expect("looks");
        let (sorted, _) = self.config.sort(&found);
        let now = self.begin + Duration::from_secs(seconds);
        let offered = offers(&sorted[0], &mut self.watched, now);
        assert_eq!(offered.len(), 1);
        offered[0].health.clone()
    }
}

#[test]
fn a_link_that_damages_what_it_carries_is_found_by_how_fast_its_counters_rise() {
    let mut seen = Seen::new("link-errors-per-minute: 10");
    // What has gathered in a year says nothing.
    seen.port_file("counters/symbol_error", "70000\n");
    seen.port_file("counters/port_rcv_data", "1\n");
    assert_eq!(seen.health_after(0), Health::Healthy);
    assert_eq!(seen.health_after(30), Health::Healthy);
    seen.port_file("counters/symbol_error", "70010\n");
    seen.port_file("counters/port_rcv_data", "99999999\n");
    assert_eq!(
        seen.health_after(60),
        Health::Healthy,
        "no more than may be"
    );
    seen.port_file("counters/symbol_error", "70031\n");
    let Health::Unhealthy(why) = seen.health_after(70) else {
        panic!("31 in 40 s are too many");
    };
    assert!(
        why.contains("mlx5_1 port 1") && why.contains("symbol_error"),
        "{why}"
    );
    assert!(why.contains("cable"), "what to do: {why}");
    assert_ne!(
        seen.health_after(100),
        Health::Healthy,
        "still within a minute"
    );
    assert_eq!(seen.health_after(131), Health::Healthy, "they have stopped");
    // A driver that was loaded anew counts from 0.
    seen.port_file("counters/symbol_error", "3\n");
    assert_eq!(seen.health_after(140), Health::Healthy);
}

#[test]
fn a_port_without_the_address_that_it_must_have_is_not_fit() {
    let mut seen = Seen::new("gid-kind: rocev2-ipv4");
    let Health::Unhealthy(why) = seen.health_after(0) else {
        panic!("it has no address at all");
    };
    assert!(why.contains("rocev2-ipv4"), "{why}");
    seen.port_file("gids/0", "fe80:0000:0000:0000:0000:00ff:fe00:0001\n");
    seen.port_file("gid_attrs/types/0", "RoCE v2\n");
    seen.port_file("gids/10", "0000:0000:0000:0000:0000:ffff:0a00:0001\n");
    seen.port_file("gid_attrs/types/10", "IB/RoCE v1\n");
    assert_ne!(
        seen.health_after(1),
        Health::Healthy,
        "neither is of that kind"
    );
    seen.port_file("gid_attrs/types/10", "RoCE v2\n");
    assert_eq!(seen.health_after(2), Health::Healthy);
    seen.port_file("gids/10", "0000:0000:0000:0000:0000:0000:0000:0000\n");
    assert_ne!(seen.health_after(3), Health::Healthy, "it was taken away");
}
