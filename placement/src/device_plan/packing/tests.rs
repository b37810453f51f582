//! Packings of layers and GPUs that differ in everything, against trying every order of every choice of GPUs.

use proptest::prelude::*;

use crate::device_plan::packing::{Class, Costs, Packing, Run, Table};

/// Layers of any size; each class of GPU adds its own overhead and scratch memory.
#[derive(Clone, Debug)]
struct Layers {
    sizes: Vec<u64>,
    added: Vec<u64>,
}

impl Costs for Layers {
    fn bytes(&self, class: usize, first: u32, end: u32) -> u64 {
        self.sizes[first as usize..end as usize].iter().sum::<u64>() + self.added[class]
    }
}

/// GPUs by class: what each offers, and how many there are.
#[derive(Clone, Debug)]
struct Case {
    layers: Layers,
    classes: Vec<Class>,
    max_gpus: u32,
}

impl Case {
    fn layers(&self) -> u32 {
        self.layers.sizes.len() as u32
    }

    fn table(&self) -> Table {
        Table::of_all(&self.layers, &self.classes, self.layers(), self.max_gpus)
    }

    fn with<T>(&self, f: impl FnOnce(&Packing<'_, Layers>) -> T) -> T {
        f(&Packing::new(&self.layers, &self.classes, self.layers(), self.max_gpus, &self.table()))
    }

    fn class_of(&self, gpu: usize) -> usize {
        self.classes.iter().position(|class| class.members.contains(&gpu)).unwrap()
    }

    fn gpus(&self) -> Vec<usize> {
        self.classes.iter().flat_map(|class| class.members.clone()).collect()
    }

    /// The fewest layers that are left over by at most `gpus` of the `unused`, in any order, each with any number of layers.
    fn fewest_left(&self, unused: &[usize], gpus: u32, end: u32) -> u32 {
        let mut fewest = end;
        for gpu in unused.iter().filter(|_| gpus > 0) {
            let others: Vec<usize> = unused.iter().copied().filter(|other| other != gpu).collect();
            let class = self.class_of(*gpu);
            for first in (0..end).filter(|first| self.layers.bytes(class, *first, end) <= self.classes[class].offered) {
                fewest = fewest.min(self.fewest_left(&others, gpus - 1, first));
            }
        }
        fewest
    }

    fn most(&self, gpus: u32) -> u32 {
        self.layers() - self.fewest_left(&self.gpus(), gpus, self.layers())
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = proptest::collection::vec(1u64..40, 1..9);
    let classes = proptest::collection::vec((0u64..150, 1usize..3, 0u64..20), 1..4);
    (sizes, classes, 0u32..6).prop_map(|(sizes, gpus, max_gpus)| {
        let (mut classes, mut next) = (Vec::new(), 0);
        for (offered, count, _) in &gpus {
            classes.push(Class { offered: *offered, members: (next..next + count).collect() });
            next += count;
        }
        let added = gpus.into_iter().map(|(_, _, added)| added).collect();
        Case { layers: Layers { sizes, added }, classes, max_gpus }
    })
}

fn check(case: &Case, count: u32, runs: &[Run]) -> Result<(), TestCaseError> {
    let mut next = case.layers() - count;
    let mut used = Vec::new();
    for run in runs {
        prop_assert_eq!(run.first, next);
        prop_assert!(run.first < run.end && !used.contains(&run.gpu), "{:?}", runs);
        let class = case.class_of(run.gpu);
        prop_assert!(case.layers.bytes(class, run.first, run.end) <= case.classes[class].offered);
        used.push(run.gpu);
        next = run.end;
    }
    prop_assert_eq!(next, case.layers());
    prop_assert!(runs.len() <= case.max_gpus as usize);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_choice_and_order_of_gpus_holds_more_layers(case in cases()) {
        prop_assert_eq!(case.with(|packing| packing.most()), case.most(case.max_gpus));
    }

    #[test]
    fn every_number_of_layers_that_fits_is_held_by_the_fewest_gpus_that_can(case in cases()) {
        let most = case.with(|packing| packing.most());
        let fewest = |count| (0..=case.max_gpus).find(|gpus| case.most(*gpus) >= count).unwrap();
        for count in 1..=most {
            let runs = case.with(|packing| packing.assign(count)).unwrap();
            check(&case, count, &runs)?;
            prop_assert_eq!(runs.len() as u32, fewest(count), "{} layers", count);
        }
        prop_assert_eq!(case.with(|packing| packing.assign(most + 1)), None);
    }

    #[test]
    fn the_shortfall_of_a_class_is_what_one_of_its_gpus_must_offer_more_and_not_a_byte_less(case in cases()) {
        prop_assume!(case.max_gpus > 0);
        for class in 0..case.classes.len() {
            let missing = case.with(|packing| packing.shortfall(case.layers(), class));
            let most = |more: u64| {
                let mut larger = case.clone();
                let gpu = larger.classes[class].members.pop().unwrap();
                larger.layers.added.push(case.layers.added[class]);
                larger.classes.push(Class { offered: case.classes[class].offered + more, members: vec![gpu] });
                larger.with(|packing| packing.most())
            };
            prop_assert_eq!(most(missing), case.layers());
            prop_assert!(missing == 0 || most(missing - 1) < case.layers());
        }
    }
}
