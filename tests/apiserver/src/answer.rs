//! Refusals, as the `Status` objects that clients read.

use serde_json::{Value, json};

/// Why a request is not carried out.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    reason: &'static str,
    message: String,
    causes: Vec<Value>,
}

impl Refusal {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            reason,
            message: message.into(),
            causes: Vec::new(),
        }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Refusal {
        Refusal::new(400, "BadRequest", message)
    }

    pub(crate) fn unauthorized() -> Refusal {
        Refusal::new(401, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Refusal {
        Refusal::new(403, "Forbidden", message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Refusal {
        Refusal::new(404, "NotFound", message)
    }

    pub(crate) fn method() -> Refusal {
        Refusal::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    pub(crate) fn exists(message: impl Into<String>) -> Refusal {
        Refusal::new(409, "AlreadyExists", message)
    }

    pub(crate) fn conflict(message: impl Into<String>) -> Refusal {
        Refusal::new(409, "Conflict", message)
    }

    /// Fields that others manage: each one's manager and path.
    pub(crate) fn managed(conflicts: &[(String, String)]) -> Refusal {
        let mut refusal = Refusal::conflict(format!(
            "Apply failed with {} conflicts: {conflicts:?}",
            conflicts.len()
        ));
        refusal.causes = conflicts
            .iter()
            .map(|(manager, path)| {
                json!({ "reason": "FieldManagerConflict", "field": path,
                    "message": format!("conflict with {manager:?}") })
            })
            .collect();
        refusal
    }

    pub(crate) fn gone() -> Refusal {
        Refusal::new(
            410,
            "Expired",
            "too old resource version: list again and watch from there",
        )
    }

    pub(crate) fn media_type(found: &str) -> Refusal {
        Refusal::new(
            415,
            "UnsupportedMediaType",
            format!("the body of the request was in an unknown format: {found:?}"),
        )
    }

    /// What breaks a schema: each mistake's path and what it is.
    pub(crate) fn invalid(what: &str, mistakes: Vec<(String, String)>) -> Refusal {
        let text: Vec<_> = mistakes
            .iter()
            .map(|(path, why)| format!("{path}: {why}"))
            .collect();
        let mut refusal = Refusal::new(
            422,
            "Invalid",
            format!("{what} is invalid: {}", text.join(", ")),
        );
        refusal.causes = mistakes
            .into_iter()
            .map(|(path, why)| json!({ "reason": "FieldValueInvalid", "field": path, "message": why }))
            .collect();
        refusal
    }

    /// An answer that a test asked for.
    pub(crate) fn made_up(code: u16) -> Refusal {
        let reason = match code {
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            _ => "InternalError",
        };
        Refusal::new(code, reason, "the test wants it so")
    }

    pub(crate) fn body(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
            "details": { "causes": self.causes },
        })
    }
}
