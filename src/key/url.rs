use http::Uri;

use super::KeyError;

/// Reads an upstream's base URL; a trailing slash is dropped.
pub(crate) fn base_url(url: &str) -> Result<Uri, KeyError> {
    let refuse = |what| KeyError::BadBaseUrl { what };
    let uri: Uri = url.trim().trim_end_matches('/').parse().map_err(|_| refuse("it is not a URL"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(refuse("it must start with http:// or https://"));
    }
    match uri.authority() {
        None => return Err(refuse("it names no host")),
        Some(authority) if authority.as_str().contains('@') => {
            return Err(refuse("it must not carry credentials"));
        }
        Some(_) => {}
    }
    if uri.query().is_some() {
        return Err(refuse("it must not carry a query"));
    }
    if !is_plain_path(uri.path()) {
        return Err(refuse("its path must not hold empty or dot segments, or backslashes"));
    }
    Ok(uri)
}

/// Whether a path stays where it is put: no empty or dot segments, no backslashes, however they are spelled.
pub(crate) fn is_plain_path(path: &str) -> bool {
    let trimmed = path.strip_prefix('/').unwrap_or(path);
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    if trimmed.is_empty() {
        return path.len() <= 1;
    }
    let bytes = trimmed.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'\\')) {
        return trimmed.split('/').all(is_plain_segment);
    }
    let lower = trimmed.to_ascii_lowercase();
    let decoded = lower.replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\");
    !decoded.contains('\\') && decoded.split('/').all(is_plain_segment)
}

fn is_plain_segment(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..")
}
