//! What a daemon's `/metrics` says: the text format of Prometheus, as far as our daemons use it.
//!
//! The crate for it (prometheus-parse) takes labels apart at every comma and brace, which folders' names may
//! have, so this is read here.

/// A number with its name and labels.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

impl Sample {
    /// The value of a label.
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        let mut labels = self.labels.iter();
        labels
            .find(|(label, _)| label == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Trackbed's numbers of one daemon at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Samples(Vec<Sample>);

/// A line that is neither a comment nor a sample.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("line {0} is not of the Prometheus text format")]
pub(crate) struct NotAMetric(usize);

impl Samples {
    /// Reads the text; numbers that are not Trackbed's are left out.
    pub(crate) fn parse(text: &str) -> Result<Samples, NotAMetric> {
        let mut samples = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim_matches([' ', '\t', '\r']);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let sample = sample(line).ok_or(NotAMetric(number))?;
            if sample.name.starts_with("trackbed_") {
                samples.push(sample);
            }
        }
        Ok(Samples(samples))
    }

    /// The samples of a name, whatever their labels.
    pub(crate) fn of<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s Sample> {
        self.0.iter().filter(move |sample| sample.name == name)
    }

    /// Their sum, if there are any.
    pub(crate) fn sum(&self, name: &str) -> Option<f64> {
        self.of(name)
            .map(|sample| sample.value)
            .reduce(|a, b| a + b)
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = word(line)?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let mut words = rest.split_ascii_whitespace();
    let value = words.next()?.parse().ok()?;
    // When it was so, which our daemons leave to whoever asks.
    if let Some(time) = words.next() {
        time.parse::<i64>().ok()?;
    }
    words.next().is_none().then(|| Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// A name at the beginning, and the rest.
fn word(text: &str) -> Option<(&str, &str)> {
    let part = |at: char| at.is_ascii_alphanumeric() || at == '_' || at == ':';
    let end = text.find(|at| !part(at)).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let begins = word.starts_with(|at: char| !at.is_ascii_digit());
    begins.then_some((word, rest))
}

/// Labels up to the brace that ends them, and what is behind it.
fn labels(text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let (mut labels, mut rest) = (Vec::new(), text.trim_start());
    loop {
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        let (name, behind) = word(rest)?;
        let behind = behind.trim_start().strip_prefix('=')?;
        let (value, behind) = quoted(behind.trim_start().strip_prefix('"')?)?;
        labels.push((name.to_owned(), value));
        let behind = behind.trim_start();
        rest = match behind.strip_prefix(',') {
            Some(behind) => behind.trim_start(),
            None if behind.starts_with('}') => behind,
            None => return None,
        };
    }
}

/// A value up to the quotation mark that ends it, and what is behind that.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match letters.next()?.1 {
                'n' => '\n',
                other @ ('\\' | '"') => other,
                _ => return None,
            }),
            letter => value.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_labels_and_numbers_are_read() {
        let text = "# HELP trackbed_a Something\n# TYPE trackbed_a gauge\ntrackbed_a 7\n\
                    trackbed_b{disk=\"/a,b}=\\\"c\\\\\", kind = \"x\",} 1.5e3 1700000000000\r\n\
                    other_total 3\n\ntrackbed_c{} +Inf\n";
        let samples = Samples::parse(text).expect("readable");
        assert_eq!(samples.sum("trackbed_a"), Some(7.0));
        let b: Vec<_> = samples.of("trackbed_b").collect();
        assert_eq!(b[0].value, 1500.0);
        assert_eq!(b[0].label("disk"), Some("/a,b}=\"c\\"));
        assert_eq!(b[0].label("kind"), Some("x"));
        assert_eq!(b[0].label("none"), None);
        assert_eq!(samples.sum("trackbed_c"), Some(f64::INFINITY));
        assert_eq!(samples.sum("other_total"), None);
    }

    #[test]
    fn what_is_no_metric_is_refused_with_its_line() {
        for line in [
            "<html>",
            "trackbed_a",
            "trackbed_a x",
            "trackbed_a 1 2 3",
            "trackbed_a 1 soon",
            "7a 1",
            "trackbed_a{b=\"c} 1",
            "trackbed_a{b=c} 1",
            "trackbed_a{b=\"c\" d=\"e\"} 1",
            "trackbed_a{b=\"\\x\"} 1",
            "trackbed_a{b=\"\\",
            "trackbed_a{",
            "{} 1",
        ] {
            let text = format!("trackbed_fine 1\n{line}\n");
            assert_eq!(Samples::parse(&text), Err(NotAMetric(2)), "{line}");
        }
    }
}
