//! What a reader gets, and what a hostile file doesn't.

use super::super::input::tests::{bandwidth, latency, report};
use super::*;
use trackbed_rdma::bench::Measure;
use trackbed_rdma::check::{Finding, Severity};
use trackbed_rdma::mesh::{MeshPlan, Node, NodePort, Pair};

fn sweep(factor: f64) -> Report {
    let rows = (1..=23)
        .map(|power| {
            let bytes = 1u64 << power;
            let gbps = factor * 190.0 * (1.0 - (-(bytes as f64) / 20_000.0).exp());
            bandwidth(bytes, &[gbps, gbps * 1.01])
        })
        .collect();
    report(Measure::Bandwidth, rows)
}

fn round_trips() -> Report {
    let rows = (1..=16)
        .map(|power| latency(1 << power, &[1.6 + f64::from(1 << power) / 9000.0]))
        .collect();
    report(Measure::Latency, rows)
}

fn mesh(nodes: usize, slow: usize) -> JudgedMesh {
    let mut pairs = Vec::new();
    for a in 0..nodes {
        for b in a + 1..nodes {
            let speed = if [a, b].contains(&slow) { 95.0 } else { 190.0 };
            let noise = ((a * 13 + b * 7) % 11) as f64 / 10.0;
            pairs.push(Pair {
                a,
                b,
                rail: 0,
                there_gbps: Some(speed + noise),
                back_gbps: Some(speed - noise),
                latency_us: Some(1.8 + noise / 20.0),
                failure: None,
            });
        }
    }
    let mesh = Mesh {
        plan: MeshPlan::default(),
        nodes: (0..nodes)
            .map(|node| Node {
                name: format!("node-{node:02}"),
                ports: vec![NodePort {
                    device: "mlx5_0".to_owned(),
                    port: 1,
                }],
            })
            .collect(),
        pairs,
        left: Vec::new(),
    };
    let judgement = outliers(&mesh, &Tolerance::default());
    JudgedMesh { mesh, judgement }
}

fn check(text: &str) -> CheckReport {
    let finding = Finding {
        id: "pci/width".to_owned(),
        severity: Severity::Failure,
        subject: "mlx5_0".to_owned(),
        found: text.to_owned(),
        expected: Some("x16".to_owned()),
        remedy: Some("reseat the card".to_owned()),
    };
    CheckReport::new("node-03".to_owned(), vec![finding])
}

fn content() -> Content {
    Content {
        title: "Rack 7 after the cable swap".to_owned(),
        benches: vec![sweep(1.0), round_trips()],
        baseline: vec![sweep(0.8)],
        line_rate_gbit_per_second: None,
        meshes: vec![mesh(12, 3)],
        checks: vec![check("x8")],
    }
}

#[test]
fn one_page_shows_curves_maps_findings_and_nothing_from_elsewhere() {
    let page = page::html(&content()).expect("a page");
    // To look at: TRACKBED_SAMPLE_REPORT=/tmp/report.html cargo test -p trackbed one_page_shows
    if let Ok(path) = std::env::var("TRACKBED_SAMPLE_REPORT") {
        std::fs::write(path, &page).expect("written");
    }
    for part in [
        "Rack 7 after the cable swap",
        "bandwidth (Gb/s)",
        "line rate 200",
        "64 KiB",
        "write, baseline",
        "99.99",
        "NIC",
        "node-03 mlx5_0/1",
        "reseat the card",
        "@media print",
    ] {
        assert!(page.contains(part), "{part} is missing");
    }
    assert_eq!(
        page.matches("<svg ").count(),
        page.matches("</svg>").count()
    );
    assert!(page.matches("<svg ").count() >= 7);
    for loaded in ["<script", "<link", "<img", "@import", "src=\"", "<iframe"] {
        assert!(!page.contains(loaded), "{loaded}");
    }
    // The name space of SVG is the only address in it.
    assert_eq!(
        page.replace("http://www.w3.org/2000/svg", "")
            .matches("http")
            .count(),
        1,
        "http-equiv"
    );
}

#[test]
fn text_of_hostile_files_is_shown_and_never_run() {
    let attack = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'";
    let mut hostile = content();
    hostile.title = attack.to_owned();
    for report in hostile.benches.iter_mut().chain(&mut hostile.baseline) {
        for text in [
            &mut report.bench,
            &mut report.host,
            &mut report.device,
            &mut report.gid,
            &mut report.peer_host,
            &mut report.peer_device,
        ] {
            *text = attack.to_owned();
        }
    }
    for node in &mut hostile.meshes[0].mesh.nodes {
        node.name = format!("{}{attack}", node.name);
        node.ports[0].device = attack.to_owned();
    }
    let judged = &mut hostile.meshes[0];
    judged.judgement = outliers(&judged.mesh, &Tolerance::default());
    hostile.checks = vec![check(attack)];
    let page = page::html(&hostile).expect("a page");
    assert!(page.contains("&lt;script&gt;"));
    for tag in ["<script", "<img", "onerror=alert(1)>"] {
        assert!(!page.contains(tag), "{tag}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn a_field_that_a_spreadsheet_would_run_is_defused() {
    let mut hostile = content();
    hostile.benches[0].bench = "=HYPERLINK(\"x\",\"y\")".to_owned();
    let text = csv::figures(&hostile);
    assert!(
        text.contains("\"'=HYPERLINK(\"\"x\"\",\"\"y\"\")\""),
        "{text}"
    );
    let heads = text.lines().next().map(|line| line.split(',').count());
    assert_eq!(heads, Some(9));
    let mesh_lines = text
        .lines()
        .filter(|line| line.starts_with("mesh,"))
        .count();
    assert_eq!(mesh_lines, 12 * 11 / 2 * 3);
}

#[test]
fn strange_but_valid_results_are_drawn_without_a_panic() {
    let rows = [
        Vec::new(),
        vec![bandwidth(1, &[0.0])],
        vec![bandwidth(1 << 30, &[1e15]), bandwidth(3, &[1e-9])],
        vec![latency(7, &[0.0])],
        vec![latency(7, &[1e12])],
    ];
    for rows in rows {
        let mut strange = content();
        let measure = if rows.iter().any(|row| row.latency.is_some()) {
            Measure::Latency
        } else {
            Measure::Bandwidth
        };
        strange.benches = vec![report(measure, rows.clone())];
        strange.baseline = vec![report(measure, rows)];
        page::html(&strange).expect("a page");
    }
    for nodes in [1, 2, 200] {
        let mut large = content();
        large.meshes = vec![mesh(nodes, 0)];
        let page = page::html(&large).expect("a page");
        assert!(page.len() < 4 << 20, "{} bytes", page.len());
    }
}

#[test]
fn what_is_written_as_json_holds_everything() {
    let text = serde_json::to_string(&content()).expect("JSON");
    let value: serde_json::Value = serde_json::from_str(&text).expect("valid");
    assert_eq!(value["benches"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        value["meshes"][0]["mesh"]["pairs"].as_array().map(Vec::len),
        Some(66)
    );
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (seconds, date) in [
        (0, "1970-01-01 00:00"),
        (951_782_399, "2000-02-28 23:59"),
        (951_782_400, "2000-02-29 00:00"),
        (1_790_000_000, "2026-09-21 14:13"),
    ] {
        assert_eq!(crate::plot::date(seconds), date);
    }
}
