use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    time::Duration,
};

use tokio::time::Instant;

use super::{kind::Kind, predict::Flow};
use crate::{clock, endpoint::Endpoint, error::Rejected, request::Priority, select::choose::Outlook};

/// How much earlier one of the next class must have come to go first all the same.
const HEAD_START: Duration = Duration::from_secs(10);
/// How long what a group knows is taken for true without another look.
const FRESH: Duration = Duration::from_secs(1);

/// Where a waiter stands: lower goes first. A request of a lower class stands as if it had come later, so that the order is
/// fixed once it stands, and nobody starves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    since: u64,
    pub(super) number: u64,
}

impl Place {
    pub(super) fn new(came: Instant, priority: Priority, number: u64) -> Self {
        let later = HEAD_START * u32::from(priority as u8);
        Self { since: clock::nanos(clock::after(came, later)), number }
    }
}

/// Those who wait for the same: what is judged for the first of them holds for all.
#[derive(Debug)]
pub(super) struct Group {
    /// Those who wait to be called, in order, with when they give up.
    idle: VecDeque<(Place, Instant)>,
    /// With those who have been called and have not left yet.
    members: usize,
    pub(super) view: View,
    pub(super) flow: Flow,
    /// Why nobody can serve it, as told to the last who asked.
    pub(super) refusal: Option<Box<(Instant, Rejected)>>,
}

/// What a look at all endpoints came to, for a group.
#[derive(Debug, Default)]
pub(super) struct View {
    /// When somebody looked last.
    pub(super) looked: Option<Instant>,
    /// The earliest return of somebody who is out.
    pub(super) earliest: Option<Instant>,
    /// Whether somebody fits and is merely busy.
    pub(super) busy: bool,
    /// Whether what rests only spares an upstream that fails.
    soft: bool,
    /// Whose return, or release, is hoped for.
    pub(super) via: Option<Endpoint>,
    /// Whether that hope is gone.
    pub(super) doubt: bool,
}

impl View {
    /// Whether it may be relied on without another look.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        !self.doubt && self.looked.is_some_and(|looked| now.saturating_duration_since(looked) < FRESH)
    }

    /// From when on there may be another look.
    pub(super) fn stale_at(&self) -> Option<Instant> {
        self.looked.map(|looked| looked + FRESH)
    }

    /// What a look would come to now.
    pub(super) fn outlook(&self) -> Outlook {
        let Self { earliest, busy, soft, .. } = *self;
        Outlook { earliest, busy, soft, ..Outlook::default() }
    }

    /// Before when nobody can start.
    pub(super) fn returns(&self) -> Option<Instant> {
        self.earliest.filter(|_| !self.busy)
    }

    /// Whether nobody comes back, or free, before `give_up`.
    pub(super) fn is_hopeless(&self, give_up: Instant) -> bool {
        !self.busy && self.earliest.is_none_or(|earliest| earliest > give_up)
    }
}

impl Group {
    /// Takes in what a look came to.
    pub(super) fn heed(&mut self, outlook: &Outlook, now: Instant) {
        let Outlook { earliest, busy, soft, via, .. } = outlook;
        // how many were served while the upstream failed says nothing of what it serves now
        if self.view.soft && !soft {
            self.flow = Flow::new(now);
        }
        let via = via.clone();
        self.view = View { looked: Some(now), earliest: *earliest, busy: *busy, soft: *soft, via, doubt: false };
    }

    /// How many are served a second; `None` while that cannot be told, as nobody knows when an upstream that fails is well.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        if self.view.soft { None } else { self.flow.rate(now) }
    }

    pub(super) fn len(&self) -> usize {
        self.idle.len()
    }

    /// Those who wait to be called, in order.
    pub(super) fn idle(&self) -> impl Iterator<Item = (Place, Instant)> {
        self.idle.iter().copied()
    }

    pub(super) fn first(&self) -> Option<(Place, Instant)> {
        self.idle.front().copied()
    }

    /// How many go before one who stands, or would stand, at `place`.
    pub(super) fn ahead(&self, place: Place) -> usize {
        self.idle.partition_point(|(other, _)| *other < place)
    }

    fn at(&self, place: Place) -> Option<usize> {
        let at = self.ahead(place);
        self.idle.get(at).is_some_and(|(other, _)| *other == place).then_some(at)
    }
}

/// All groups, and the first of each in order.
#[derive(Debug, Default)]
pub(super) struct Line {
    groups: HashMap<Kind, Group>,
    heads: BTreeMap<Place, Kind>,
}

impl Line {
    /// Counts one in, who does not stand yet.
    pub(super) fn join(&mut self, kind: Kind, now: Instant) -> &mut Group {
        let group = self.groups.entry(kind).or_insert_with(|| Group {
            idle: VecDeque::new(),
            members: 0,
            view: View::default(),
            flow: Flow::new(now),
            refusal: None,
        });
        group.members += 1;
        group
    }

    /// Counts one out, who does not stand any more.
    pub(super) fn leave(&mut self, kind: Kind) {
        if let Some(group) = self.groups.get_mut(&kind) {
            group.members -= 1;
            if group.members == 0 {
                self.groups.remove(&kind);
            }
        }
    }

    /// Has one stand in line. Says whether somebody is first where nobody was, or an earlier one: a walk along the first of
    /// all groups may have missed it.
    pub(super) fn stand(&mut self, kind: Kind, place: Place, give_up: Instant) -> bool {
        let Some(group) = self.groups.get_mut(&kind) else { return false };
        let ahead = group.ahead(place);
        let old = group.idle.front().map(|(head, _)| *head);
        group.idle.insert(ahead, (place, give_up));
        if ahead > 0 {
            return false;
        }
        if let Some(old) = old {
            self.heads.remove(&old);
        }
        self.heads.insert(place, kind);
        true
    }

    /// Takes one out who stands; whether it stood.
    pub(super) fn step_out(&mut self, kind: Kind, place: Place) -> bool {
        let Some(group) = self.groups.get_mut(&kind) else { return false };
        let Some(at) = group.at(place) else { return false };
        group.idle.remove(at);
        if at == 0 {
            self.heads.remove(&place);
            if let Some((head, _)) = group.idle.front() {
                self.heads.insert(*head, kind);
            }
        }
        true
    }

    /// The first of a group, the earliest after `place`.
    pub(super) fn head_after(&self, place: Option<Place>) -> Option<(Place, Kind)> {
        let from = place.map_or(Bound::Unbounded, Bound::Excluded);
        self.heads.range((from, Bound::Unbounded)).next().map(|(place, kind)| (*place, *kind))
    }

    pub(super) fn group(&self, kind: Kind) -> Option<&Group> {
        self.groups.get(&kind)
    }

    pub(super) fn group_mut(&mut self, kind: Kind) -> Option<&mut Group> {
        self.groups.get_mut(&kind)
    }

    pub(super) fn groups_mut(&mut self) -> impl Iterator<Item = (Kind, &mut Group)> {
        self.groups.iter_mut().map(|(kind, group)| (*kind, group))
    }

    /// Whether one stands in line.
    pub(super) fn stands(&self, kind: Kind, place: Place) -> bool {
        self.groups.get(&kind).is_some_and(|group| group.at(place).is_some())
    }

    /// How many wait to be called.
    pub(super) fn len(&self) -> usize {
        self.groups.values().map(Group::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};

    use super::*;

    #[test]
    fn a_class_goes_first_until_the_other_has_waited_ten_seconds_longer() {
        let start = Instant::now();
        let at = |seconds: u64, priority| Place::new(start + Duration::from_secs(seconds), priority, 0);
        assert!(at(9, Priority::High) < at(0, Priority::Normal));
        assert!(at(11, Priority::High) > at(0, Priority::Normal));
        assert!(at(19, Priority::High) < at(0, Priority::Low));
        assert!(at(21, Priority::High) > at(0, Priority::Low));
        assert!(at(1, Priority::Low) > at(0, Priority::Low));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Stand(u8, u8),
        Call(usize),
        Back(usize),
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4_u8, 0..3_u8).prop_map(|(kind, class)| Step::Stand(kind, class)),
            any::<usize>().prop_map(Step::Call),
            any::<usize>().prop_map(Step::Back),
            any::<usize>().prop_map(Step::Leave),
            Just(Step::Leave(0)),
        ]
    }

    proptest! {
        /// Whatever comes and goes, the walk meets the first of each group, and all in order.
        #[test]
        fn r044_the_first_of_each_group_is_met_in_order(steps in prop::collection::vec(step(), 0..200)) {
            let (mut line, start) = (Line::default(), Instant::now());
            let mut model: Vec<(Kind, Place, bool)> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                let find = |index: usize, model: &[(Kind, Place, bool)]| (!model.is_empty()).then(|| index % model.len());
                match step {
                    Step::Stand(kind, class) => {
                        let kind = Kind::Like(u64::from(kind));
                        let came = start + Duration::from_secs(number as u64);
                        let place = Place::new(came, Priority::ALL[usize::from(class)], number as u64);
                        line.join(kind, start);
                        line.stand(kind, place, start);
                        model.push((kind, place, true));
                    }
                    Step::Call(index) => if let Some(index) = find(index, &model) {
                        let (kind, place, stands) = model[index];
                        prop_assert_eq!(line.step_out(kind, place), stands);
                        model[index].2 = false;
                    },
                    Step::Back(index) => if let Some(index) = find(index, &model).filter(|index| !model[*index].2) {
                        line.stand(model[index].0, model[index].1, start);
                        model[index].2 = true;
                    },
                    Step::Leave(index) => if let Some(index) = find(index, &model) {
                        let (kind, place, _) = model.swap_remove(index);
                        line.step_out(kind, place);
                        line.leave(kind);
                    },
                }
                let mut heads: Vec<Place> = (0..4).filter_map(|kind| {
                    let of = |other: &&(Kind, Place, bool)| other.2 && other.0 == Kind::Like(kind);
                    model.iter().filter(of).map(|(_, place, _)| *place).min()
                }).collect();
                heads.sort_unstable();
                let mut walked = Vec::new();
                while let Some((place, _)) = line.head_after(walked.last().copied()) {
                    walked.push(place);
                }
                prop_assert_eq!(walked, heads);
                for (kind, place, stands) in &model {
                    let before = model.iter().filter(|other| other.2 && other.0 == *kind && other.1 < *place).count();
                    let group = line.group(*kind).unwrap();
                    prop_assert_eq!((group.ahead(*place), group.at(*place).is_some()), (before, *stands));
                }
                let kinds: std::collections::HashSet<_> = model.iter().map(|(kind, ..)| *kind).collect();
                prop_assert_eq!(line.groups.len(), kinds.len(), "nothing is kept of a group that is gone");
            }
        }
    }
}
