//! Measuring one case after the other: pairs in turn, a row for each, on to the next after a failure.

use crate::{
    BenchError,
    paired::Pair,
    progress::Progress,
    row::{Case, Row},
};

/// What all cases of a part share.
pub struct Session<'a> {
    progress: &'a Progress,
    print: &'a mut dyn FnMut(Row),
    /// Cases that could not be measured, or not to their end.
    failed: Vec<String>,
}

impl<'a> Session<'a> {
    /// Rows go to `print` as they are done.
    pub fn new(progress: &'a Progress, print: &'a mut dyn FnMut(Row)) -> Self {
        Self {
            progress,
            print,
            failed: Vec::new(),
        }
    }

    /// Measures pairs of one case and prints its row.
    ///
    /// A pair that fails is measured once more; if it fails again, the row has the pairs there are.
    pub fn measure(
        &mut self,
        case: &Case,
        pairs: usize,
        ours: &mut dyn FnMut() -> Result<f64, BenchError>,
        peer: &mut dyn FnMut() -> Result<f64, BenchError>,
    ) {
        self.progress.case(&case.name);
        let mut measured = Vec::with_capacity(pairs);
        for index in 0..pairs {
            // Each goes first half of the time, so that neither always meets a warm machine.
            let mut pair = || {
                Ok(if index % 2 == 0 {
                    let ours = ours()?;
                    Pair {
                        ours,
                        peer: peer()?,
                    }
                } else {
                    let peer = peer()?;
                    Pair {
                        ours: ours()?,
                        peer,
                    }
                })
            };
            match pair().or_else(|_: BenchError| pair()) {
                Ok(pair) => measured.push(pair),
                Err(error) => {
                    self.fail(&case.name, &error);
                    break;
                }
            }
            self.progress.step();
        }
        self.row(case.row(&measured));
    }

    /// Prints a row that was measured otherwise.
    pub fn row(&mut self, row: Row) {
        self.progress.aside(|| (self.print)(row));
    }

    /// Says why a case could not be measured, or not to its end.
    pub fn fail(&mut self, case: &str, error: &BenchError) {
        self.progress
            .aside(|| eprintln!("hack/bench: {case}: {error}"));
        self.failed.push(case.to_owned());
    }

    /// Whether every case was measured to its end.
    pub fn end(self) -> Result<(), BenchError> {
        if self.failed.is_empty() {
            return Ok(());
        }
        Err(BenchError::Unavailable(format!(
            "could not be measured, as said above: {}",
            self.failed.join(", ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paired::{Better, Verdict};

    fn case(name: &str) -> Case {
        Case {
            bench: "rdma",
            name: name.to_owned(),
            peer_name: "perftest",
            unit: "Gb/s",
            better: Better::Higher,
            goal: 0.9,
        }
    }

    fn rows(measure: impl FnOnce(&mut Session<'_>)) -> (Vec<Row>, Result<(), BenchError>) {
        let mut rows = Vec::new();
        let mut print = |row| rows.push(row);
        let progress = Progress::bar();
        let mut session = Session::new(&progress, &mut print);
        measure(&mut session);
        let ended = session.end();
        (rows, ended)
    }

    #[test]
    fn one_run_that_fails_is_repeated() {
        let mut first = true;
        let (rows, ended) = rows(|session| {
            let mut ours = || match std::mem::take(&mut first) {
                true => Err(BenchError::Unavailable("lost".to_owned())),
                false => Ok(2.0),
            };
            session.measure(&case("a"), 4, &mut ours, &mut || Ok(2.0));
        });
        assert!(ended.is_ok());
        assert_eq!((rows[0].pairs, rows[0].verdict), (4, Verdict::Pass));
    }

    #[test]
    fn a_case_that_keeps_failing_leaves_the_others_alone_and_is_told_at_the_end() {
        let (rows, ended) = rows(|session| {
            let mut broken = || Err(BenchError::Unavailable("no such verb".to_owned()));
            session.measure(&case("a"), 4, &mut broken, &mut || Ok(1.0));
            session.measure(&case("b"), 2, &mut || Ok(1.0), &mut || Ok(1.0));
        });
        assert_eq!(rows[0].verdict, Verdict::Inconclusive);
        assert_eq!((rows[0].ours, rows[0].pairs), (None, 0));
        assert_eq!(rows[1].verdict, Verdict::Pass);
        let told = ended.expect_err("one case failed").to_string();
        assert!(told.ends_with(": a"), "{told}");
    }

    #[test]
    fn each_side_goes_first_as_often_as_the_other() {
        let order = std::cell::RefCell::new(String::new());
        let (_, ended) = rows(|session| {
            let mut ours = || {
                order.borrow_mut().push('o');
                Ok(1.0)
            };
            session.measure(&case("a"), 4, &mut ours, &mut || {
                order.borrow_mut().push('p');
                Ok(1.0)
            });
        });
        assert!(ended.is_ok());
        assert_eq!(order.into_inner(), "oppooppo");
    }
}
