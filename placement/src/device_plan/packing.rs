//! How many of the last layers some GPUs can hold, and which layers each of them gets.
//!
//! Each GPU holds one run of layers, so an answer is a sequence of GPUs, from the output layer down. Given what was placed before, a GPU is best
//! filled as far as it goes: a run that begins further down reaches at least as far. So the best that a set of GPUs can do follows from the best of
//! each set with one GPU less, and that is computed for every set. Equal GPUs are counted, not told apart, which keeps the sets few.

use std::cmp::Reverse;

/// What it costs to put layers on a GPU.
pub(super) trait Costs {
    /// Bytes that layers `first` to `end - 1` take on this class of GPU, all included; more layers never take fewer. `first < end`.
    fn bytes(&self, class: usize, first: u32, end: u32) -> u64;
}

/// GPUs that are equal in everything that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Class {
    /// Bytes on offer.
    pub offered: u64,
    /// Indices of the GPUs, in the order of their ids.
    pub members: Vec<usize>,
}

/// One GPU's run of layers: `first` to `end - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub gpu: usize,
    pub first: u32,
    pub end: u32,
}

/// The best that every set of GPUs can do.
pub(super) struct Packing<'a, C> {
    costs: &'a C,
    classes: &'a [Class],
    layers: u32,
    max_gpus: u32,
    table: &'a Table,
}

/// For each set of GPUs, how far down the layers they reach, and which class the last of them is of.
#[derive(Clone, Debug)]
pub(super) struct Table {
    reach: Vec<u32>,
    last: Vec<usize>,
}

/// Offers are scaled by `n / SCALE` to find the most even way to fill several GPUs.
const SCALE: u64 = 256;

impl<'a, C: Costs> Packing<'a, C> {
    /// `table` is that of the same costs, classes and limits: [`Table::of_all`].
    pub fn new(costs: &'a C, classes: &'a [Class], layers: u32, max_gpus: u32, table: &'a Table) -> Packing<'a, C> {
        Packing { costs, classes, layers, max_gpus, table }
    }

    /// The largest number of last layers that fit.
    pub fn most(&self) -> u32 {
        self.layers - self.table.reach.iter().copied().min().unwrap_or(self.layers)
    }

    /// Who gets which of the last `count` layers, in the order of the layers; `None` where they don't fit.
    pub fn assign(&self, count: u32) -> Option<Vec<Run>> {
        let target = self.layers.checked_sub(count)?;
        let all: Vec<u32> = self.classes.iter().map(|class| class.members.len() as u32).collect();
        let sets = Sets::new(&all);
        let reaching = (0..self.table.reach.len()).filter(|set| self.table.reach[*set] <= target);
        let chosen = reaching.min_by_key(|set| self.preference(&sets.counts(*set), *set))?;
        let counts = sets.counts(chosen);
        let even = self.most_even(&counts, target);
        Some(self.runs(&even, &counts, target))
    }

    /// The fewest bytes that the GPUs of `class` would have to offer more, one of them alone, for the last `count` layers to fit; 0 where they do.
    ///
    /// The other GPUs hold what they can from above and from below, and this one holds what is left between.
    pub fn shortfall(&self, count: u32, class: usize) -> u64 {
        let target = self.layers.saturating_sub(count);
        if self.most() >= count {
            return 0;
        }
        let mut others: Vec<u32> = self.classes.iter().map(|class| class.members.len() as u32).collect();
        others[class] = others[class].saturating_sub(1);
        let sets = Sets::new(&others);
        let most_others = others.iter().sum::<u32>().min(self.max_gpus.saturating_sub(1));
        let above = Table::fill(self.costs, self.classes, &others, self.layers, most_others, SCALE);
        let upwards = Reaches::up(self.costs, self.classes, target, self.layers);
        // How many may be used below depends on how many are above, unless all may.
        let limits = if most_others < others.iter().sum() { 0..=most_others } else { most_others..=most_others };
        let below: Vec<Table> = limits.map(|most| Table::of(&sets, most, target, &upwards, |a, b| a > b)).collect();
        let used = |set: usize| sets.counts(set).iter().sum::<u32>();
        let between = (0..sets.len).filter(|set| used(*set) <= most_others).map(|set| {
            // Those that hold nothing above, as many as may still be used.
            let spare = ((most_others - used(set)) as usize).min(below.len() - 1);
            let (first, end) = (below[spare].reach[sets.len - 1 - set], above.reach[set]);
            if first < end { self.costs.bytes(class, first, end) } else { 0 }
        });
        between.min().unwrap_or(0).saturating_sub(self.classes[class].offered)
    }

    /// Fewest GPUs; of single ones the smallest offer, of several the largest offers together.
    fn preference(&self, counts: &[u32], set: usize) -> (u32, u128, Reverse<u128>, usize) {
        let gpus: u32 = counts.iter().sum();
        let offered = counts.iter().zip(self.classes).map(|(count, class)| u128::from(*count) * u128::from(class.offered)).sum();
        if gpus == 1 { (gpus, offered, Reverse(0), set) } else { (gpus, 0, Reverse(offered), set) }
    }

    /// The table of these GPUs alone, their offers scaled down as far as the layers still fit.
    fn most_even(&self, counts: &[u32], target: u32) -> Table {
        let fill = |scale| Table::fill(self.costs, self.classes, counts, self.layers, self.max_gpus, scale);
        let (mut too_small, mut enough) = (0, SCALE);
        let mut table = fill(enough);
        // A single GPU holds the same however much of it is offered.
        while counts.iter().sum::<u32>() > 1 && enough - too_small > 1 {
            let middle = too_small + (enough - too_small) / 2;
            let tried = fill(middle);
            if tried.reach.last().is_some_and(|reach| *reach <= target) {
                (enough, table) = (middle, tried);
            } else {
                too_small = middle;
            }
        }
        table
    }

    /// Follows the table back from the whole set.
    fn runs(&self, table: &Table, counts: &[u32], target: u32) -> Vec<Run> {
        let sets = Sets::new(counts);
        let mut unused: Vec<_> = self.classes.iter().map(|class| class.members.iter()).collect();
        let mut runs = Vec::new();
        let mut set = table.reach.len() - 1;
        let mut first = target;
        while set > 0 {
            let class = table.last[set];
            set -= sets.strides[class];
            let end = table.reach[set];
            if first < end
                && let Some(gpu) = unused[class].next()
            {
                runs.push(Run { gpu: *gpu, first, end });
                first = end;
            }
        }
        runs
    }
}

impl Table {
    /// What every set of the GPUs can do; of all that is asked of a packing, the costliest part.
    pub fn of_all<C: Costs>(costs: &C, classes: &[Class], layers: u32, max_gpus: u32) -> Table {
        let all: Vec<u32> = classes.iter().map(|class| class.members.len() as u32).collect();
        Table::fill(costs, classes, &all, layers, max_gpus, SCALE)
    }

    fn fill<C: Costs>(costs: &C, classes: &[Class], counts: &[u32], layers: u32, max_gpus: u32, scale: u64) -> Table {
        let reaches = Reaches::down(costs, classes, counts, layers, scale);
        Table::of(&Sets::new(counts), max_gpus, layers, &reaches, |a, b| a < b)
    }

    /// The best of every set, from the best of each set with one GPU less. `reaches` says how far a GPU of a class gets from where the others
    /// got, `better` which of two is further. A set of more than `max_gpus` does what the best of its parts does.
    fn of(sets: &Sets, max_gpus: u32, start: u32, reaches: &Reaches, better: impl Fn(u32, u32) -> bool) -> Table {
        let mut table = Table { reach: vec![start; sets.len], last: vec![0; sets.len] };
        let mut used = vec![0; sets.radices.len()];
        let limited = sets.radices.iter().map(|radix| radix - 1).sum::<usize>() > max_gpus as usize;
        for set in 1..sets.len {
            sets.advance(&mut used);
            let too_many = limited && used.iter().sum::<usize>() > max_gpus as usize;
            let mut best: Option<(u32, usize)> = None;
            for (class, stride) in sets.strides.iter().enumerate() {
                if used[class] == 0 {
                    continue;
                }
                let without = table.reach[set - stride];
                let reached = if too_many { without } else { reaches.from(class, without) };
                if best.is_none_or(|(furthest, _)| better(reached, furthest)) {
                    best = Some((reached, class));
                }
            }
            (table.reach[set], table.last[set]) = best.unwrap_or((start, 0));
        }
        table
    }
}

fn scaled(offered: u64, scale: u64) -> u64 {
    (u128::from(offered) * u128::from(scale) / u128::from(SCALE)) as u64
}

/// How far one GPU of each class gets from every layer where it may begin.
struct Reaches {
    by_class: Vec<Vec<u32>>,
}

impl Reaches {
    /// For each `end`, the smallest `first` for which layers `first` to `end - 1` fit; `end` where not even one does. Offers are scaled.
    ///
    /// What begins further up never gets further down, so all ends are gone through once. Classes of which none is counted are left out.
    fn down<C: Costs>(costs: &C, classes: &[Class], counts: &[u32], layers: u32, scale: u64) -> Reaches {
        let of_class = |(index, class): (usize, &Class)| {
            if counts[index] == 0 {
                return Vec::new();
            }
            let offered = scaled(class.offered, scale);
            let mut first = 0;
            let reach = (0..=layers).map(|end| {
                while first < end && costs.bytes(index, first, end) > offered {
                    first += 1;
                }
                first
            });
            reach.collect()
        };
        Reaches { by_class: classes.iter().enumerate().map(of_class).collect() }
    }

    /// For each `first` from `target` on, the largest `end` up to `layers` for which layers `first` to `end - 1` fit; `first` where not even one does.
    fn up<C: Costs>(costs: &C, classes: &[Class], target: u32, layers: u32) -> Reaches {
        let of_class = |(index, class): (usize, &Class)| {
            let mut reach = vec![layers; layers as usize + 1];
            let mut end = layers;
            for first in (target..layers).rev() {
                while first < end && costs.bytes(index, first, end) > class.offered {
                    end -= 1;
                }
                reach[first as usize] = end;
            }
            reach
        };
        Reaches { by_class: classes.iter().enumerate().map(of_class).collect() }
    }

    fn from(&self, class: usize, start: u32) -> u32 {
        self.by_class[class][start as usize]
    }
}

/// Sets of GPUs as numbers: how many of each class, in mixed radix.
struct Sets {
    radices: Vec<usize>,
    strides: Vec<usize>,
    len: usize,
}

impl Sets {
    fn new(counts: &[u32]) -> Sets {
        let radices: Vec<usize> = counts.iter().map(|count| *count as usize + 1).collect();
        let mut len = 1;
        let mut strides = Vec::with_capacity(radices.len());
        for radix in &radices {
            strides.push(len);
            len *= radix;
        }
        Sets { radices, strides, len }
    }

    /// Counts one on.
    fn advance(&self, counts: &mut [usize]) {
        for (count, radix) in counts.iter_mut().zip(&self.radices) {
            *count += 1;
            if *count < *radix {
                return;
            }
            *count = 0;
        }
    }

    fn counts(&self, set: usize) -> Vec<u32> {
        self.radices.iter().zip(&self.strides).map(|(radix, stride)| (set / stride % radix) as u32).collect()
    }
}

#[cfg(test)]
mod tests;
