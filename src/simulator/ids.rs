//! Identifiers in OpenRouter's shapes, derived from seed and name so that runs repeat.

use sha2::{Digest, Sha256};

use super::clock::Wall;
use super::draw::rng;

const ALPHANUMERIC: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// `sk-or-v1-` and 64 lower-case hexadecimal digits.
pub(super) fn secret(seed: u64, label: &str) -> String {
    format!("sk-or-v1-{}", hex(&digest(&[b"secret", &seed.to_le_bytes(), label.as_bytes()])))
}

/// The key's `hash`: SHA-256 of the whole key.
pub(super) fn key_hash(secret: &str) -> String {
    let hash: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
    hex(&hash)
}

/// `sk-or-v1-abc...123`.
pub(super) fn masked(secret: &str) -> String {
    let head: String = secret.chars().take(12).collect();
    let tail: Vec<char> = secret.chars().rev().take(3).collect();
    format!("{head}...{}", tail.iter().rev().collect::<String>())
}

/// `org_…` or `user_…`.
pub(super) fn owner(seed: u64, name: &str, organization: bool) -> String {
    let kind = if organization { "org" } else { "user" };
    let bytes = digest(&[kind.as_bytes(), &seed.to_le_bytes(), name.as_bytes()]);
    let letters = bytes.iter().take(27).map(|byte| char::from(ALPHANUMERIC[usize::from(*byte) % 62]));
    format!("{kind}_{}", letters.collect::<String>())
}

/// A UUID-shaped id of a workspace.
pub(super) fn workspace(seed: u64, account: &str, name: &str) -> String {
    let text = hex(&digest(&[b"workspace", &seed.to_le_bytes(), account.as_bytes(), name.as_bytes()])[..16]);
    format!("{}-{}-4{}-a{}-{}", &text[..8], &text[8..12], &text[13..16], &text[17..20], &text[20..])
}

/// `gen-<unix seconds>-<20 alphanumerics>`.
pub(super) fn generation(rng: &mut fastrand::Rng, now: Wall) -> String {
    let mut id = format!("gen-{}-", now.seconds());
    id.extend((0..20).map(|_| char::from(ALPHANUMERIC[rng.usize(..62)])));
    id
}

/// A Cloudflare ray id.
pub(super) fn ray(number: u64) -> String {
    format!("{:016x}-SIM", rng(0, "ray", number).u64(..))
}
