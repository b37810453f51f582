//! Plans as many nodes as it takes to be sure of the best.

use std::collections::{BTreeMap, HashMap};

use crate::capability::Engine;
use crate::device_plan::{Device, NodeDevices};
use crate::fit_report::{Considered, Demand, PlanReport, Refusal, consider};
use crate::model_summary::ModelSummary;
use crate::node_choice::figures::Figures;
use crate::node_choice::refusal::{self, Nearest};
use crate::node_choice::survey::{Prospect, Survey};
use crate::node_choice::{Choice, Node};
use crate::reason::Reason;
use crate::request::Asked;
use crate::units::Bytes;

/// One search among the nodes for one request.
pub(super) struct Search<'a> {
    engine: Engine,
    summary: &'a ModelSummary,
    asked: &'a Asked,
    nodes: &'a [Node],
    /// Layers wished on GPU.
    wished: u32,
    survey: Survey<'a>,
    /// What was planned, by what the devices offer: of nodes that offer the same, one is planned.
    planned: HashMap<Vec<u64>, Planned>,
    /// The plans, by node.
    considered: HashMap<usize, Considered<'a>>,
}

#[derive(Clone, Copy)]
enum Planned {
    Placed(Figures),
    Refused(Reason, Bytes),
}

/// A node that is refused, and the least that it is short by.
#[derive(Clone, Copy)]
struct Refused {
    index: usize,
    at_least: Bytes,
}

impl<'a> Search<'a> {
    pub fn new(engine: Engine, summary: &'a ModelSummary, asked: &'a Asked, demand: Demand, nodes: &'a [Node]) -> Search<'a> {
        let wished = demand.wished(summary.total_layers().0);
        let survey = Survey::new(engine, summary, asked, demand);
        Search { engine, summary, asked, nodes, wished, survey, planned: HashMap::new(), considered: HashMap::new() }
    }

    /// Among the nodes of these indices. An error: what is asked can't be planned on any node.
    pub fn run(mut self, open: &[usize], filtered: &[Reason]) -> Result<Choice, Refusal> {
        let mut hopeful: Vec<(usize, Figures)> = Vec::with_capacity(open.len());
        let mut refused: BTreeMap<Reason, Vec<Refused>> = BTreeMap::new();
        for index in open.iter().copied() {
            match self.survey.prospect(&self.nodes[index])? {
                Prospect::AtBest(figures) => hopeful.push((index, figures)),
                Prospect::Refused(reason, at_least) => refused.entry(reason).or_default().push(Refused { index, at_least }),
            }
        }
        let nodes = self.nodes;
        let rank = |index: usize, figures: Figures| figures.rank(&nodes[index]);
        let at_best = |(index, figures): (usize, Figures)| rank(index, figures);
        let best = best_first(&hopeful, at_best, |(index, _)| match self.planned(index)? {
            Planned::Placed(figures) => Ok(Some(rank(index, figures))),
            Planned::Refused(reason, at_least) => {
                refused.entry(reason).or_default().push(Refused { index, at_least });
                Ok(None)
            }
        })?;
        match best {
            Some(((node, _), _)) => Ok(Choice::Placed { node, report: self.report(node)? }),
            None => self.refuse(&refused, filtered),
        }
    }

    /// Of the nodes of these indices, the best one on which the request is met as wished, and the processor there.
    pub fn meeting(mut self, indices: &[usize]) -> Result<Option<(usize, String)>, Refusal> {
        let mut hopeful: Vec<(usize, Figures)> = Vec::new();
        for index in indices.iter().copied() {
            if let Prospect::AtBest(figures) = self.survey.prospect(&self.nodes[index])?
                && figures.meet(self.wished)
            {
                hopeful.push((index, figures));
            }
        }
        let (nodes, wished) = (self.nodes, self.wished);
        let rank = |index: usize, figures: Figures| figures.rank(&nodes[index]);
        let at_best = |(index, figures): (usize, Figures)| rank(index, figures);
        let best = best_first(&hopeful, at_best, |(index, _)| match self.planned(index)? {
            Planned::Placed(figures) if figures.meet(wished) => Ok(Some(rank(index, figures))),
            Planned::Placed(_) | Planned::Refused(..) => Ok(None),
        })?;
        best.map(|((index, _), _)| Ok((index, self.consider(index)?.plan().processor.clone()))).transpose()
    }

    fn refuse(mut self, refused: &BTreeMap<Reason, Vec<Refused>>, filtered: &[Reason]) -> Result<Choice, Refusal> {
        let nearest = self.nearest(refused)?;
        let best = nearest.iter().min_by_key(|nearest| (nearest.shortfall, &self.nodes[nearest.index].name)).map(|nearest| nearest.index);
        let best = best.map(|index| self.report(index).map(|report| (index, report))).transpose()?;
        Ok(refusal::refuse(self.nodes, filtered, &nearest, best))
    }

    /// Of each reason's nodes, the one that is short by least, names telling equal ones apart.
    fn nearest(&mut self, refused: &BTreeMap<Reason, Vec<Refused>>) -> Result<Vec<Nearest>, Refusal> {
        let nodes = self.nodes;
        let name = |index: usize| nodes[index].name.as_str();
        let mut found = Vec::new();
        for (reason, refused) in refused {
            let exact = |refused: Refused| match self.planned(refused.index)? {
                Planned::Refused(_, shortfall) => Ok(Some((shortfall, name(refused.index)))),
                Planned::Placed(_) => Ok(None),
            };
            let least = best_first(refused, |refused| (refused.at_least, name(refused.index)), exact)?;
            if let Some((Refused { index, .. }, (shortfall, _))) = least {
                found.push(Nearest { index, reason: *reason, count: refused.len(), shortfall });
            }
        }
        Ok(found)
    }

    fn planned(&mut self, index: usize) -> Result<Planned, Refusal> {
        let offers = offers(&self.nodes[index].devices);
        if let Some(planned) = self.planned.get(&offers) {
            return Ok(*planned);
        }
        let considered = self.consider(index)?;
        let planned = match considered.outcome.is_placed() {
            true => Planned::Placed(Figures::of(&considered)),
            false => Planned::Refused(considered.outcome.reason(), considered.shortfall()?),
        };
        self.planned.insert(offers, planned);
        self.considered.insert(index, considered);
        Ok(planned)
    }

    fn report(&self, index: usize) -> Result<PlanReport, Refusal> {
        let known = self.considered.get(&index).map(Considered::decision);
        Ok(known.unwrap_or_else(|| self.consider(index)?.decision())?.report)
    }

    fn consider(&self, index: usize) -> Result<Considered<'a>, Refusal> {
        consider(self.engine, self.summary, self.asked, &self.nodes[index].devices)
    }
}

/// All that figures follow from; what the GPUs are called does not count.
fn offers(devices: &NodeDevices) -> Vec<u64> {
    let figures = |device: &Device| [device.backend as u64, device.overhead.0, device.offered.0];
    let mut gpus: Vec<[u64; 3]> = devices.gpus.iter().map(figures).collect();
    gpus.sort_unstable();
    gpus.push(figures(&devices.host));
    let mut offers = gpus.concat();
    offers.push(devices.defaults.overhead_bytes.0);
    offers
}

/// The least of all, by `exact`, which is asked of as few as can be: `at_best` is never more. `None` from `exact`: it does not count.
fn best_first<T: Copy, K: Ord>(
    items: &[T],
    at_best: impl Fn(T) -> K,
    mut exact: impl FnMut(T) -> Result<Option<K>, Refusal>,
) -> Result<Option<(T, K)>, Refusal> {
    let Some((first, item)) = items.iter().copied().enumerate().min_by(|(_, a), (_, b)| at_best(*a).cmp(&at_best(*b))) else {
        return Ok(None);
    };
    let mut best = exact(item)?.map(|found| (item, found));
    let worth = |item: T, best: &Option<(T, K)>| best.as_ref().is_none_or(|(_, found)| at_best(item) < *found);
    let others = items.iter().copied().enumerate().filter(|(index, item)| *index != first && worth(*item, &best));
    let mut others: Vec<T> = others.map(|(_, item)| item).collect();
    others.sort_unstable_by_key(|item| at_best(*item));
    for item in others {
        if !worth(item, &best) {
            break;
        }
        if let Some(found) = exact(item)?
            && best.as_ref().is_none_or(|(_, least)| found < *least)
        {
            best = Some((item, found));
        }
    }
    Ok(best)
}
