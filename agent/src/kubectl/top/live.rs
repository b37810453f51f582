//! On a terminal: drawn anew whenever a ModelNode changes.

use futures::{StreamExt, pin_mut};
use kube::Api;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use stowage_crds::ModelNode;

use console::Term;

use super::snapshot::Snapshot;
use super::{TopArgs, draw};
use crate::kubectl::Error;

/// Goes on until Ctrl-C, or until nobody reads any more.
pub async fn run(api: Api<ModelNode>, args: &TopArgs, terminal: &Term) -> Result<(), Error> {
    terminal.hide_cursor()?;
    let drawn = tokio::select! {
        drawn = follow(api, args, terminal) => drawn,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    terminal.show_cursor()?;
    drawn
}

async fn follow(api: Api<ModelNode>, args: &TopArgs, terminal: &Term) -> Result<(), Error> {
    let (known, writer) = reflector::store();
    let changes = watcher(api, watcher::Config::default()).default_backoff().reflect(writer);
    pin_mut!(changes);
    while let Some(change) = changes.next().await {
        // The first list comes piece by piece, and is all there with this one.
        let complete = matches!(change, Ok(watcher::Event::InitDone | watcher::Event::Apply(_) | watcher::Event::Delete(_)));
        if let Err(error) = &change {
            terminal.write_line(&format!("watching ModelNodes: {error}; trying again"))?;
        }
        if complete {
            let nodes: Vec<ModelNode> = known.state().iter().map(|node| node.as_ref().clone()).collect();
            show(&Snapshot::new(&nodes, &args.nodes, args.defaults.defaults()), terminal)?;
        }
    }
    Ok(())
}

/// As much of it as the terminal has lines for.
fn show(snapshot: &Snapshot, terminal: &Term) -> std::io::Result<()> {
    let text = draw::render(snapshot) + "\nCtrl-C ends.";
    let (rows, columns) = terminal.size();
    let lines: Vec<&str> = text.lines().collect();
    let fitting = usize::from(rows).saturating_sub(1);
    let hidden = lines.len().saturating_sub(fitting);
    let shown = if hidden == 0 { lines.len() } else { fitting.saturating_sub(1) };
    let cut = lines.iter().take(shown).map(|line| console::truncate_str(line, usize::from(columns), "…") + "\n");
    let more = if hidden == 0 {
        String::new()
    } else {
        format!("… {} more lines: name the nodes that you want to see, or use --once", lines.len() - shown)
    };
    terminal.clear_screen()?;
    terminal.write_str(&(cut.collect::<String>() + &more))
}
