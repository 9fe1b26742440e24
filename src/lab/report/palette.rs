//! Colours: one for each role, told apart by people who see colours differently, in the light and in the dark.
//!
//! A drawing has the colours of daylight in it, so it is whole by itself. The stylesheet of the page then says, for each of
//! these colours, what it is in the dark and how its lines are dashed: attributes of an SVG yield to any rule of CSS. So each
//! role has a colour that no other has, to the last bit.
//!
//! The hues are those of Okabe and Ito, "Color Universal Design" (2008), the yellow darker by day, since white paper would
//! swallow it, and the black for the oracle; where they run out, dashes tell lines apart.

use std::fmt::Write;

use plotters::style::RGBColor;

/// A colour with a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Role {
    light: u32,
    dark: u32,
    dash: &'static str,
}

impl Role {
    const fn new(light: u32, dark: u32) -> Self {
        Self { light, dark, dash: "" }
    }

    pub(super) const fn color(self) -> RGBColor {
        let [_, red, green, blue] = self.light.to_be_bytes();
        RGBColor(red, green, blue)
    }

    /// As an SVG spells it.
    pub(super) fn hex(self) -> String {
        format!("#{:06X}", self.light)
    }
}

/// Text, and the oracle.
pub(super) const INK: Role = Role::new(0x1B1F24, 0xE8EAED);
/// Axes and what is said in passing.
pub(super) const FAINT: Role = Role::new(0x5C6670, 0xA7B0BA);
/// Lines of a grid.
pub(super) const GRID: Role = Role::new(0xE3E6EA, 0x30363D);
/// What was offered.
pub(super) const OFFERED: Role = Role::new(0x8A939C, 0x7D8792);
/// A key rests.
pub(super) const RESTS: Role = Role::new(0xF0BC52, 0xB98414);
/// A key's breaker is open.
pub(super) const OPEN: Role = Role::new(0xC8324E, 0xE4556F);
/// A key in trouble.
pub(super) const TROUBLE: Role = Role::new(0x1C1F24, 0xE9EAED);
/// A value in a map.
pub(super) const VALUE: Role = Role::new(0x0E7AB8, 0x2E93D1);

const ORACLE: Role = Role { light: 0x1B2024, dark: 0xE8EBED, dash: "2 5" };

const HUES: [(u32, u32); 7] = [
    (0x0072B2, 0x4AA8E6),
    (0xD55E00, 0xFF8B4A),
    (0x009E73, 0x2CC99B),
    (0xCC79A7, 0xE69BC6),
    (0xE69F00, 0xF2BA3E),
    (0x56B4E9, 0xA9DCF8),
    (0x9A9000, 0xF0E442),
];

const DASHES: [&str; 3] = ["", "9 4", "3 3"];

/// How many stacks can be told apart.
pub(super) const SLOTS: usize = HUES.len() * DASHES.len();

/// The colour of the stack in this place; `None` is the oracle's.
pub(super) fn stack(slot: Option<usize>) -> Role {
    let Some(slot) = slot.map(|slot| slot % SLOTS) else { return ORACLE };
    let ((light, dark), round) = (HUES[slot % HUES.len()], slot / HUES.len());
    // the last bits tell the rounds apart, and nobody sees them
    Role { light: light ^ round as u32, dark, dash: DASHES[round] }
}

/// What the colours are in the dark, and how lines are dashed.
pub(super) fn css(scale: u32) -> String {
    let stacks = (0..SLOTS).map(Some).chain([None]).map(stack);
    let roles: Vec<_> = [INK, FAINT, GRID, OFFERED, RESTS, OPEN, TROUBLE, VALUE].into_iter().chain(stacks).collect();
    let mut css = String::new();
    for role in &roles {
        if !role.dash.is_empty() {
            let dash =
                role.dash.split(' ').filter_map(|part| part.parse().ok()).map(|part: u32| (part * scale).to_string());
            let dash = dash.collect::<Vec<_>>().join(" ");
            let _ = writeln!(css, "svg [stroke=\"{}\"] {{ stroke-dasharray: {dash} }}", role.hex());
        }
    }
    css.push_str("@media screen and (prefers-color-scheme: dark) {\n");
    for role in &roles {
        let (hex, dark) = (role.hex(), role.dark);
        let _ = writeln!(
            css,
            "svg [fill=\"{hex}\"] {{ fill: #{dark:06X} }} svg [stroke=\"{hex}\"] {{ stroke: #{dark:06X} }}"
        );
    }
    css.push_str("}\n");
    css
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_roles_have_one_colour() {
        let stacks = (0..SLOTS).map(Some).chain([None]).map(stack);
        let mut hexes: Vec<_> =
            [INK, FAINT, GRID, OFFERED, RESTS, OPEN, TROUBLE, VALUE].into_iter().chain(stacks).map(Role::hex).collect();
        let count = hexes.len();
        hexes.sort();
        hexes.dedup();
        assert_eq!(hexes.len(), count);
    }
}
