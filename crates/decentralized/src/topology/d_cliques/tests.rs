//! The rule as a whole: edge counts of the paper, cliques, skew, refusals.

use std::collections::BTreeSet;

use rand::RngExt;
use rand::seq::SliceRandom;

use super::*;
use crate::classes::ClassCounts;
use crate::mixing::MixingMatrix;
use crate::seed;
use crate::topology::testing::connect;

fn rule(inter: InterClique) -> DCliques {
    DCliques {
        size: 10,
        inter,
        steps: Some(0),
        removed_edges: 0,
    }
}

fn n_edges(mixing: &MixingMatrix) -> usize {
    mixing.entries().filter(|(row, col, _)| row < col).count()
}

/// Two shards of 25 examples a node, of data sorted by ten classes.
fn two_shards(n_nodes: usize, seed: u64) -> ClassCounts {
    let mut shards: Vec<usize> = (0..2 * n_nodes)
        .map(|shard| shard * 10 / (2 * n_nodes))
        .collect();
    shards.shuffle(&mut seed::rng(seed, 1));
    let mut counts = vec![0; 10 * n_nodes];
    for (i, class) in shards.into_iter().enumerate() {
        counts[i / 2 * 10 + class] += 25;
    }
    ClassCounts::new(10, counts)
}

fn one_class(n_nodes: usize) -> ClassCounts {
    let count = |i: usize| u32::from(i / 10 % 10 == i % 10) * 45;
    ClassCounts::new(10, (0..10 * n_nodes).map(count).collect())
}

fn mean_skew(cliques: &[Clique], classes: &ClassCounts) -> f64 {
    let all = classes.proportions_of(0..classes.n_nodes());
    let of_clique = |clique: &Clique| {
        let nodes = clique.iter().map(|&node| node as usize);
        skew(&classes.proportions_of(nodes), &all)
    };
    cliques.iter().map(of_clique).sum::<f64>() / cliques.len() as f64
}

#[test]
fn edges_are_those_of_the_paper() -> Result<(), TopologyError> {
    let check = |n_nodes, inter, expect: usize| -> Result<(), TopologyError> {
        let schedule = connect(&rule(inter), n_nodes)?;
        let n_edges = n_edges(schedule.mixing(0));
        match inter {
            // Edges between the same two nodes, chosen at random, are one.
            InterClique::SmallWorld => assert!(
                n_edges.abs_diff(expect) * 50 <= expect,
                "{n_edges} edges, expected {expect} within 2 %"
            ),
            _ => assert_eq!(n_edges, expect, "{n_nodes} nodes, {inter}"),
        }
        Ok(())
    };
    check(100, InterClique::Ring, 460)?;
    check(100, InterClique::Fractal, 495)?;
    check(100, InterClique::SmallWorld, 608)?;
    check(100, InterClique::FullyConnected, 495)?;
    check(1000, InterClique::Ring, 4_600)?;
    check(1000, InterClique::Fractal, 4_995)?;
    check(1000, InterClique::SmallWorld, 7_291)?;
    check(1000, InterClique::FullyConnected, 9_450)?;
    check(10_000, InterClique::Ring, 46_000)?;
    check(10_000, InterClique::Fractal, 49_995)?;
    check(10_000, InterClique::SmallWorld, 84_825)?;
    check(10_000, InterClique::FullyConnected, 544_500)
}

#[test]
fn edges_and_messages_are_a_few_percent_of_all() -> Result<(), TopologyError> {
    let schedule = connect(&rule(InterClique::FullyConnected), 1000)?;
    let n_edges = n_edges(schedule.mixing(0)) as f64;
    let all = (1000 * 999 / 2) as f64;
    let less = |share: f64| (100.0 * (1.0 - share)).round();
    assert_eq!(less(n_edges / all), 98.0);
    // Clique Averaging sends gradients, and then models, along every edge.
    assert_eq!(less(2.0 * n_edges / all), 96.0);
    Ok(())
}

#[test]
fn cliques_hold_every_node_once() {
    for (n_nodes, size) in [
        (1, 10),
        (9, 10),
        (100, 10),
        (103, 10),
        (19, 2),
        (7, 1),
        (5, 4),
    ] {
        let cliques = random_cliques(n_nodes, size, &mut seed::rng(3, 0));
        let all: BTreeSet<u32> = cliques.iter().flatten().copied().collect();
        assert_eq!(all, (0..n_nodes as u32).collect());
        assert_eq!(cliques.iter().map(Vec::len).sum::<usize>(), n_nodes);
        assert_eq!(cliques.len(), n_nodes.div_ceil(size));
        let sizes: BTreeSet<usize> = cliques.iter().map(Vec::len).collect();
        assert!(sizes.len() <= 2 && sizes.last() <= Some(&size.min(n_nodes)));
        assert!(sizes.first() >= sizes.last().map(|most| most - 1).as_ref());
    }
}

#[test]
fn cliques_are_complete_and_all_connected() -> Result<(), TopologyError> {
    for inter in InterClique::ALL {
        for n_nodes in [1, 2, 3, 5, 16, 17, 100, 103] {
            for size in [1, 2, 3, 10] {
                let rule = DCliques {
                    size,
                    ..rule(inter)
                };
                let schedule = connect(&rule, n_nodes)?;
                let mut graph = Graph::new(n_nodes);
                for (row, col, _) in schedule.mixing(0).entries() {
                    graph.connect(row, col);
                }
                for clique in &schedule.cliques {
                    assert!(clique.is_sorted());
                    let inside = Graph::circulant(clique.len(), 1..clique.len());
                    let mut edges = inside.edges();
                    assert!(
                        edges.all(|(i, j)| graph.has_edge(clique[i] as usize, clique[j] as usize))
                    );
                }
                assert_eq!(graph.components().len(), 1, "{n_nodes} nodes, {rule:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn edges_between_cliques_burden_nodes_alike() -> Result<(), TopologyError> {
    // Of 99 edges a clique's ten nodes have nine or ten each, and nine within the clique.
    let schedule = connect(&rule(InterClique::FullyConnected), 1000)?;
    let degree = |node| schedule.mixing(0).row(node).0.len() - 1;
    assert!((0..1000).all(|node| (18..=19).contains(&degree(node))));
    // At most one edge of a fractal, and two of a ring in each clique.
    let schedule = connect(&rule(InterClique::Fractal), 1000)?;
    let degree = |node| schedule.mixing(0).row(node).0.len() - 1;
    assert!((0..1000).all(|node| (9..=10).contains(&degree(node))));
    let schedule = connect(&rule(InterClique::Ring), 1000)?;
    let degree = |node| schedule.mixing(0).row(node).0.len() - 1;
    assert!((0..1000).all(|node| (9..=10).contains(&degree(node))));
    Ok(())
}

#[test]
fn edges_are_removed_from_each_clique() -> Result<(), TopologyError> {
    for removed_edges in [0, 1, 5, 45] {
        let rule = DCliques {
            removed_edges,
            ..rule(InterClique::Ring)
        };
        let schedule = connect(&rule, 100)?;
        let mixing = schedule.mixing(0);
        assert_eq!(n_edges(mixing), 460 - 10 * removed_edges);
        for clique in &schedule.cliques {
            let others = |&node: &u32| {
                mixing
                    .row(node as usize)
                    .0
                    .iter()
                    .filter(move |&&col| col > node)
            };
            let inside = clique.iter().flat_map(others);
            let n_inside = inside
                .filter(|col| clique.binary_search(col).is_ok())
                .count();
            assert_eq!(n_inside, 45 - removed_edges);
        }
    }
    Ok(())
}

#[test]
fn greedy_swap_finds_cliques_without_skew() {
    let classes = one_class(100);
    let rng = &mut seed::rng(11, 0);
    let mut cliques = random_cliques(100, 10, rng);
    assert!(mean_skew(&cliques, &classes) > 0.4);
    greedy_swap(&mut cliques, &classes, 1000, rng);
    assert_eq!(mean_skew(&cliques, &classes), 0.0);
}

#[test]
fn swaps_only_ever_improve() {
    let classes = two_shards(100, 5);
    let rng = &mut seed::rng(11, 0);
    let mut cliques = random_cliques(103 - 3, 10, rng);
    let mut last = mean_skew(&cliques, &classes);
    for _ in 0..300 {
        greedy_swap(&mut cliques, &classes, 1, rng);
        let now = mean_skew(&cliques, &classes);
        assert!(now <= last, "{last} to {now}");
        last = now;
    }
    assert!(last < 0.2, "{last}");
}

#[test]
fn steps_end_where_no_swap_improves() {
    // Nodes of all sizes, one without examples.
    let rng = &mut seed::rng(2, 0);
    let counts = (0..4 * 31).map(|i| if i < 4 { 0 } else { rng.random_range(0..9) });
    let classes = ClassCounts::new(4, counts.collect());
    let mut cliques = random_cliques(31, 6, rng);
    greedy_swap(&mut cliques, &classes, 20_000, rng);
    let all = classes.proportions_of(0..31);
    let skew_of = |clique: &[u32]| {
        let nodes = clique.iter().map(|&node| node as usize);
        skew(&classes.proportions_of(nodes), &all)
    };
    for (first, second) in Graph::circulant(cliques.len(), 1..cliques.len()).edges() {
        let before = skew_of(&cliques[first]) + skew_of(&cliques[second]);
        for (i, j) in (0..5).flat_map(|i| (0..5).map(move |j| (i, j))) {
            let (mut a, mut b) = (cliques[first].clone(), cliques[second].clone());
            std::mem::swap(&mut a[i], &mut b[j]);
            assert!(skew_of(&a) + skew_of(&b) > before - 1e-9);
        }
    }
}

#[test]
fn the_default_steps_come_close_to_ten_times_as_many() {
    for n_nodes in [100, 1000, 10_000] {
        let classes = two_shards(n_nodes, 5);
        let rng = &mut seed::rng(12, 0);
        let mut cliques = random_cliques(n_nodes, 10, rng);
        let steps = default_steps(cliques.len());
        greedy_swap(&mut cliques, &classes, steps, rng);
        let by_default = mean_skew(&cliques, &classes);
        greedy_swap(&mut cliques, &classes, 9 * steps, rng);
        let by_ten_times = mean_skew(&cliques, &classes);
        assert!(by_default < 0.05, "{n_nodes} nodes: {by_default}");
        assert!(
            by_default <= 1.05 * by_ten_times,
            "{n_nodes} nodes: {by_default}, and {by_ten_times} after ten times the steps"
        );
    }
}

#[test]
fn what_cannot_be_connected_is_refused() {
    let check = |rule: DCliques, n_nodes, expect: &str| {
        let error = connect(&rule, n_nodes).expect_err("refused");
        assert_eq!(error.to_string(), expect);
    };
    let ring = rule(InterClique::Ring);
    let no_size = DCliques { size: 0, ..ring };
    check(no_size, 9, "d-cliques: size is 0, expected at least 1");
    let removed = DCliques {
        removed_edges: 46,
        ..ring
    };
    let expect =
        "d-cliques: removed-edges is 46, expected at most the 45 edges of a clique of 10 nodes";
    check(removed, 100, expect);
    let default = DCliques {
        steps: None,
        ..ring
    };
    check(
        default,
        100,
        "d-cliques needs to know which classes each node holds",
    );
}
