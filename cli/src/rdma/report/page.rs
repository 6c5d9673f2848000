//! What the page shows, in its order.

use super::{Content, sections};
use crate::plot::{Drawn, document};

/// Writes the whole page.
pub(super) fn html(content: &Content) -> Drawn {
    let mut body = sections::summary(content);
    body.push_str(&sections::bandwidth(content)?);
    body.push_str(&sections::latency(content)?);
    for mesh in &content.meshes {
        body.push_str(&sections::mesh(mesh)?);
    }
    body.push_str(&sections::checks(&content.checks));
    body.push_str(&sections::setup(content));
    Ok(document(&content.title, &body))
}
