//! Which cases of a part are measured.

use crate::BenchError;
use clap::Args;

/// Which cases.
#[derive(Debug, Args)]
pub struct Selection {
    /// Only the cases whose name begins so; may be repeated. --list names them.
    #[arg(long, value_name = "PREFIX")]
    case: Vec<String>,
    /// Say which cases there are, and end.
    #[arg(long)]
    list: bool,
}

impl Selection {
    /// Those that are wanted; none if they were only to be named, which is done.
    pub fn of<T>(
        &self,
        part: &str,
        cases: impl IntoIterator<Item = T>,
        name: impl Fn(&T) -> &str,
    ) -> Result<Option<Vec<T>>, BenchError> {
        let begins = |case: &T| {
            let begins = |prefix: &String| name(case).starts_with(prefix.as_str());
            self.case.is_empty() || self.case.iter().any(begins)
        };
        let wanted: Vec<T> = cases.into_iter().filter(begins).collect();
        if self.list {
            wanted.iter().for_each(|case| println!("{}", name(case)));
            return Ok(None);
        }
        if wanted.is_empty() {
            return Err(BenchError::Unavailable(format!(
                "no case begins with {}: `hack/bench {part} --list` names them",
                self.case.join(" or ")
            )));
        }
        Ok(Some(wanted))
    }
}
