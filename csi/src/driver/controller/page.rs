//! Long lists, a page at a time. A page ends at an entry's place in the order of creation, so what
//! is created meanwhile is on a later page, and deleting the last entry seen does no harm.

use trackbed_cache::registry::Key;

use crate::driver::error::VolumeError;
use crate::driver::ledger::{Created, Entry};

/// The most entries of one answer, whatever is asked for: gRPC's clients take 4 MiB, and each has
/// about a thousand bytes at most.
const MAX_PAGE: usize = 3000;

/// Which page is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    entries: usize,
    /// Where the page before ended.
    after: Option<(Created, Key)>,
}

impl Page {
    pub(super) fn parse(max_entries: i32, starting_token: &str) -> Result<Page, VolumeError> {
        let entries = usize::try_from(max_entries)
            .map_err(|_| VolumeError::Invalid(format!("max_entries is negative: {max_entries}")))?;
        let after = match starting_token {
            "" => None,
            token => Some(
                place(token)
                    .ok_or_else(|| VolumeError::Token(token.chars().take(100).collect()))?,
            ),
        };
        Ok(Page {
            entries: match entries {
                0 => MAX_PAGE,
                entries => entries.min(MAX_PAGE),
            },
            after,
        })
    }

    /// The page of `all`, which is in the order of creation, and the next one's token.
    pub(super) fn of<T: Entry>(&self, all: Vec<(Key, T)>) -> (Vec<T>, String) {
        let place = |(key, entry): &(Key, T)| (entry.created(), *key);
        let mut rest = all
            .into_iter()
            .skip_while(|entry| self.after.is_some_and(|after| place(entry) <= after));
        let page: Vec<_> = rest.by_ref().take(self.entries).collect();
        let token = match (page.last(), rest.next()) {
            (Some((key, last)), Some(_)) => format!("{:016x}-{key}", last.created().0),
            _ => String::new(),
        };
        (page.into_iter().map(|(_, entry)| entry).collect(), token)
    }
}

fn place(token: &str) -> Option<(Created, Key)> {
    let (created, key) = token.split_once('-')?;
    let hex = created.len() == 16 && created.bytes().all(|c| c.is_ascii_hexdigit());
    let nanos = u64::from_str_radix(created, 16).ok().filter(|_| hex)?;
    Some((Created(nanos), Key::parse(key)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::ledger::VolumeEntry;
    use crate::driver::spec::VolumeSpec;
    use proptest::prelude::*;

    fn entry(number: u64) -> (Key, VolumeEntry) {
        let entry = VolumeEntry {
            name: number.to_string(),
            content: VolumeSpec::EMPTY,
            bytes: 0,
            capacity: 0,
            source: None,
            // Two at a time, as clocks may be coarse.
            created: Created(number / 2),
        };
        (entry.key(), entry)
    }

    fn in_order(mut all: Vec<(Key, VolumeEntry)>) -> Vec<(Key, VolumeEntry)> {
        all.sort_by_key(|(key, entry)| (entry.created(), *key));
        all
    }

    #[test]
    fn pages_show_each_entry_once_though_some_are_deleted_and_added_meanwhile() {
        let mut all = in_order((0..5).map(entry).collect());
        let first = Page::parse(2, "").expect("valid");
        let (seen, token) = first.of(all.clone());
        assert_eq!(seen.len(), 2);
        // Both of the page go, another comes.
        all.drain(..2);
        all.push(entry(7));
        let rest = Page::parse(0, &token).expect("valid");
        let (seen, token) = rest.of(in_order(all));
        let names: Vec<_> = seen.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names.len(), 4);
        assert_eq!(names[3], "7");
        assert_eq!(token, "");
    }

    #[test]
    fn a_page_that_is_just_full_is_the_last() {
        let all = in_order((0..2).map(entry).collect());
        let (seen, token) = Page::parse(2, "").expect("valid").of(all);
        assert_eq!((seen.len(), token.as_str()), (2, ""));
    }

    proptest! {
        #[test]
        fn no_other_text_is_a_token(text in "\\PC{1,100}") {
            prop_assert!(matches!(Page::parse(0, &text), Err(VolumeError::Token(_))));
        }
    }
}
