//! The documentation: it is a book without a link that leads nowhere, and names no command or flag that
//! there is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use trackbed_tests::cluster::trackbed;
use trackbed_tests::manifests;

fn repository() -> PathBuf {
    let above = manifests::folder().join("..");
    above.canonicalize().expect("the repository")
}

/// What stands between `before` and the next quotation mark, wherever that occurs.
fn quoted(text: &str, before: &str) -> Vec<String> {
    let after = text.split(before).skip(1);
    after
        .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
        .collect()
}

/// The path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|it| it == ending) {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_book_has_every_page_and_no_link_that_leads_nowhere() {
    let Some(mdbook) = std::env::var_os("TRACKBED_MDBOOK") else {
        println!("skipped: it takes TRACKBED_MDBOOK, its program (hack/test has it)");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let book = folder.path().join("book");
    let built = Command::new(mdbook)
        .arg("build")
        .arg("--dest-dir")
        .arg(&book)
        .arg(repository())
        .output()
        .expect("mdbook runs");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{said}");
    assert!(!said.contains("WARN"), "{said}");

    let mut pages = BTreeMap::new();
    for path in files(&book, "html") {
        let text = fs::read_to_string(&path).expect("readable");
        pages.insert(path, text);
    }
    for source in files(&repository().join("docs"), "md") {
        let name = source.file_stem().expect("a name");
        let page = book.join(name).with_extension("html");
        let there = name == "SUMMARY" || pages.contains_key(&page);
        assert!(there, "docs/SUMMARY.md does not name {}", source.display());
    }
    let anchors: BTreeMap<&PathBuf, BTreeSet<String>> = pages
        .iter()
        .map(|(path, text)| (path, quoted(text, " id=\"").into_iter().collect()))
        .collect();
    let mut links = 0;
    for (path, text) in &pages {
        for link in [quoted(text, " href=\""), quoted(text, " src=\"")].concat() {
            // Other sites are not asked; 404.html is shown at any depth.
            if link.contains("://") || link.starts_with("mailto:") || path.ends_with("404.html") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let to = match file {
                "" => path.clone(),
                file => plain(&path.parent().expect("a folder").join(file)),
            };
            assert!(to.exists(), "{}: {link} leads nowhere", path.display());
            if let Some(anchors) = anchors.get(&to).filter(|_| !anchor.is_empty()) {
                assert!(
                    anchors.contains(anchor),
                    "{}: {link} leads nowhere",
                    path.display()
                );
            }
            links += 1;
        }
    }
    assert!(links > 50, "{links}");
}

#[test]
fn links_between_the_repository_s_pages_lead_somewhere() {
    let root = repository();
    let mut pages = files(&root.join("docs"), "md");
    for name in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        pages.push(root.join(name));
    }
    let mut links = 0;
    for page in pages {
        let text = fs::read_to_string(&page).expect("readable");
        for rest in text.split("](").skip(1) {
            let Some((link, _)) = rest.split_once(')') else {
                continue;
            };
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || link.contains("://") {
                continue;
            }
            let to = page.parent().expect("a folder").join(file);
            assert!(to.exists(), "{}: {link} leads nowhere", page.display());
            links += 1;
        }
    }
    assert!(links > 10, "{links}");
}

/// The commands of `trackbed` that a page's shell blocks have: words up to the first that is no name of a
/// subcommand, and the long flags.
fn commands(text: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let mut found = Vec::new();
    let blocks = text.split("```sh\n").skip(1);
    for block in blocks.filter_map(|block| block.split_once("```")) {
        let joined = block.0.replace("\\\n", " ");
        for line in joined.lines() {
            let line = line.split(" #").next().unwrap_or_default();
            for command in line.split(['|', ';', '&']) {
                let mut words = command.split_whitespace();
                if words.next() != Some("trackbed") {
                    continue;
                }
                let words: Vec<&str> = words.collect();
                let is_name =
                    |word: &&&str| word.bytes().all(|it| it.is_ascii_lowercase() || it == b'-');
                let names = words
                    .iter()
                    .take(2)
                    .take_while(|word| !word.starts_with('-'))
                    .filter(is_name);
                let flags = words.iter().filter(|word| word.starts_with("--"));
                found.push((
                    names.map(|word| (*word).to_owned()).collect(),
                    flags
                        .map(|flag| flag.split('=').next().unwrap_or(flag).to_owned())
                        .collect(),
                ));
            }
        }
    }
    found
}

fn help(names: &[String]) -> Option<String> {
    let ran = Command::new(trackbed())
        .args(names)
        .arg("--help")
        .output()
        .expect("runs");
    ran.status
        .success()
        .then(|| String::from_utf8_lossy(&ran.stdout).into_owned())
}

#[test]
fn commands_on_the_pages_are_ones_that_there_are() {
    let mut known: BTreeMap<Vec<String>, Option<String>> = BTreeMap::new();
    let mut count = 0;
    for page in files(&repository().join("docs"), "md") {
        let text = fs::read_to_string(&page).expect("readable");
        for (mut names, flags) in commands(&text) {
            let mut help = known
                .entry(names.clone())
                .or_insert_with_key(|names| help(names))
                .clone();
            if help.is_none() && names.len() == 2 {
                // The second word was an argument.
                names.pop();
                help = known
                    .entry(names.clone())
                    .or_insert_with_key(|names| self::help(names))
                    .clone();
            }
            let place = page.display();
            let help = help.unwrap_or_else(|| panic!("{place}: there is no trackbed {names:?}"));
            for flag in flags {
                assert!(
                    help.contains(&flag),
                    "{place}: trackbed {names:?} has no {flag}"
                );
            }
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}
