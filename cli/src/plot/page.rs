//! The page around plots: one file, nothing loaded, no script, nothing of a file's text unescaped.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// For the screen and for paper: dark ink on white, no page break inside a figure.
const STYLE: &str = "\
:root{color-scheme:light}\
body{font:15px/1.45 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;color:#222;background:#fff;\
max-width:60rem;margin:2rem auto;padding:0 1.5rem}\
h1{font-size:1.7rem;margin:0 0 .2rem}h2{font-size:1.25rem;margin:2.2rem 0 .6rem;border-bottom:1px solid #ccc;\
padding-bottom:.2rem}h3{font-size:1rem;margin:1.4rem 0 .3rem}\
.meta{color:#555;margin:0 0 1rem}figure{margin:0 0 1rem}figcaption{color:#555;font-size:.87rem}\
svg{max-width:100%;height:auto;display:block}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.87rem;margin:.4rem 0 1rem}\
th{text-align:left;border-bottom:1.5px solid #888;padding:.2rem .7rem .2rem 0;font-weight:600;vertical-align:bottom}\
td{border-bottom:1px solid #e3e3e3;padding:.2rem .7rem .2rem 0;vertical-align:top}\
td.n,th.n{text-align:right}\
.bad{color:#a63200;font-weight:600}.warn{color:#7a5200;font-weight:600}.good{color:#00603f;font-weight:600}\
.pair{display:flex;flex-wrap:wrap;gap:1rem}\
@media print{body{margin:0;max-width:none;font-size:10.5pt}@page{margin:16mm}\
figure,tr{break-inside:avoid}h2,h3{break-after:avoid}.wide{overflow:visible}table{font-size:8.5pt}}";

/// A policy that lets a browser load and run nothing at all.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// The whole page around what it shows.
pub(crate) fn document(title: &str, body: &str) -> String {
    let title = escape(title);
    let software = concat!("trackbed ", env!("CARGO_PKG_VERSION"));
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n\
         <p class=\"meta\">Written by {software} on {} UTC</p>\n{body}</body></html>\n",
        date(seconds)
    )
}

/// Text as it may stand anywhere in a page.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // What turns the direction of text, and what does not show, could make it say something else.
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// A cell of a table: text, or a number that stands at the right.
pub(crate) enum Cell {
    Text(String),
    Number(String),
    /// Text with a class of the style sheet.
    Marked(String, &'static str),
}

/// A table; a head that begins with `#` is of numbers.
pub(crate) fn table(heads: &[&str], rows: &[Vec<Cell>]) -> String {
    let mut html = String::from("<div class=\"wide\"><table><thead><tr>");
    for head in heads {
        let _ = match head.strip_prefix('#') {
            Some(head) => write!(html, "<th class=\"n\">{}</th>", escape(head)),
            None => write!(html, "<th>{}</th>", escape(head)),
        };
    }
    html.push_str("</tr></thead><tbody>\n");
    for row in rows {
        html.push_str("<tr>");
        for cell in row {
            let _ = match cell {
                Cell::Text(text) => write!(html, "<td>{}</td>", escape(text)),
                Cell::Number(text) => write!(html, "<td class=\"n\">{}</td>", escape(text)),
                Cell::Marked(text, class) => {
                    write!(html, "<td class=\"{class}\">{}</td>", escape(text))
                }
            };
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
    html
}

/// A plot with what it shows in words, also for who can't see it.
pub(crate) fn figure(svg: &str, caption: &str) -> String {
    let caption = escape(caption);
    // plotters writes the element first, without a role.
    let svg = svg.replacen(
        "<svg ",
        &format!("<svg role=\"img\" aria-label=\"{caption}\" "),
        1,
    );
    format!("<figure>{svg}<figcaption>{caption}</figcaption></figure>\n")
}

/// Seconds since 1970 as a date and time of the Gregorian calendar (Howard Hinnant's days_from_civil,
/// the other way round).
pub(crate) fn date(seconds: u64) -> String {
    let days = (seconds / 86400) as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let of_day = seconds % 86400;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}",
        of_day / 3600,
        of_day / 60 % 60
    )
}
