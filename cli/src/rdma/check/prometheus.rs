//! A check as metrics in the Prometheus text format.

use crate::node::metrics::label;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};
use trackbed_rdma::check::{CheckReport, Severity, Verdict};

/// All metrics of a check that ended at `now`.
pub(super) fn text(report: &CheckReport, now: SystemTime) -> String {
    let mut text = String::new();
    let head = |text: &mut String, name: &str, help: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
    };
    let node = label(&report.node);

    let name = "trackbed_rdma_check_severity";
    head(
        &mut text,
        name,
        "What was found: 0 ok, 1 note, 2 warning, 3 unknown, 4 failure.",
    );
    for (key, severity) in worst(report) {
        let (check, subject) = (label(key.0), label(key.1));
        let _ = writeln!(
            text,
            "{name}{{node=\"{node}\",check=\"{check}\",subject=\"{subject}\"}} {}",
            severity as u8
        );
    }
    let name = "trackbed_rdma_check_findings";
    head(
        &mut text,
        name,
        "How many findings there are of each severity.",
    );
    for severity in Severity::ALL {
        let count = report
            .findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count();
        let _ = writeln!(
            text,
            "{name}{{node=\"{node}\",severity=\"{severity}\"}} {count}"
        );
    }
    let name = "trackbed_rdma_check_fit";
    head(
        &mut text,
        name,
        "1 when the node is fit, 0 when it is not or could not be judged.",
    );
    let fit = u8::from(report.verdict == Verdict::Pass);
    let _ = writeln!(text, "{name}{{node=\"{node}\"}} {fit}");
    let name = "trackbed_rdma_check_timestamp_seconds";
    head(&mut text, name, "When the check ended, since 1970.");
    let seconds = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let _ = writeln!(text, "{name}{{node=\"{node}\"}} {seconds}");
    text
}

/// A check may find several things about a subject; a series has one value: that of the gravest.
fn worst(report: &CheckReport) -> std::collections::BTreeMap<(&str, &str), Severity> {
    let mut worst = std::collections::BTreeMap::new();
    for finding in &report.findings {
        let severity = worst
            .entry((finding.id.as_str(), finding.subject.as_str()))
            .or_insert(finding.severity);
        *severity = (*severity).max(finding.severity);
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;
    use trackbed_rdma::check::Finding;

    #[test]
    fn every_series_occurs_once_with_its_gravest_value() {
        let finding = |severity| Finding {
            id: "counters/load".to_owned(),
            severity,
            subject: "mlx5_0/1".to_owned(),
            found: String::new(),
            expected: None,
            remedy: None,
        };
        let findings = vec![finding(Severity::Note), finding(Severity::Failure)];
        let report = CheckReport::new("a\"b".to_owned(), findings);
        let text = text(&report, UNIX_EPOCH);
        let series = "trackbed_rdma_check_severity{node=\"a\\\"b\",check=\"counters/load\",subject=\"mlx5_0/1\"} ";
        assert_eq!(text.matches(series).count(), 1, "{text}");
        assert!(text.contains(&format!("{series}4\n")), "{text}");
        assert!(
            text.contains("trackbed_rdma_check_fit{node=\"a\\\"b\"} 0\n"),
            "{text}"
        );
        assert!(text.contains("severity=\"failure\"} 1\n"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(
                line.rsplit_once(' ')
                    .is_some_and(|(_, value)| value.parse::<f64>().is_ok())
            );
        }
    }
}
