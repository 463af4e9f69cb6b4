//! Where the nodes of a graph are drawn: cliques on a circle of circles, rings and other circulant
//! graphs on a circle, the rest where the distances between nodes put them.

use std::collections::VecDeque;
use std::f64::consts::TAU;

use rand::seq::SliceRandom;

use super::edges::Graph;
use crate::seed;

/// A place within the unit square.
pub(super) type Place = (f64, f64);

/// Passes over all pairs of nodes; pictures no longer change after about twenty.
const N_PASSES: usize = 30;

/// Where each node is drawn, in the unit square; the same for the same graph.
pub(super) fn places(graph: &Graph) -> Vec<Place> {
    if graph.cliques.len() > 1 && graph.clique_of.iter().all(Option::is_some) {
        return circle_of_cliques(graph);
    }
    if let Some(order) = circle_order(graph) {
        let mut places = vec![(0.5, 0.5); graph.n_nodes];
        for (i, &node) in order.iter().enumerate() {
            places[node] = on_circle((0.5, 0.5), 0.47, i, order.len());
        }
        return places;
    }
    by_distances(graph)
}

/// The `i`-th of `n` places on a circle, clockwise from the top.
fn on_circle(centre: Place, radius: f64, i: usize, n: usize) -> Place {
    if n < 2 {
        return centre;
    }
    let angle = TAU * (i as f64 / n as f64 - 0.25);
    (
        centre.0 + radius * angle.cos(),
        centre.1 + radius * angle.sin(),
    )
}

fn circle_of_cliques(graph: &Graph) -> Vec<Place> {
    let n_cliques = graph.cliques.len();
    // As large as their distance on the large circle lets them be.
    let apart = (TAU / n_cliques as f64 / 2.0).sin();
    let small = (0.5 * apart / (1.0 + apart) * 0.8).min(0.17);
    let centre = |clique_idx| on_circle((0.5, 0.5), 0.48 - small, clique_idx, n_cliques);
    let mut places = vec![(0.5, 0.5); graph.n_nodes];
    for (clique_idx, clique) in graph.cliques.iter().enumerate() {
        let slots: Vec<Place> = (0..clique.len())
            .map(|i| on_circle(centre(clique_idx), small, i, clique.len()))
            .collect();
        let outside = |&node: &usize| outside_centre(graph, node, clique_idx, &centre);
        for (node, place) in nearest_slots(clique, slots, outside) {
            places[node] = place;
        }
    }
    places
}

// Where a node's neighbours of other cliques are, on average, and how many there are.
fn outside_centre(
    graph: &Graph,
    node: usize,
    clique_idx: usize,
    centre: &impl Fn(usize) -> Place,
) -> (usize, Place) {
    let cliques = graph.neighbours[node]
        .iter()
        .filter_map(|&node| graph.clique_of[node]);
    let outside: Vec<Place> = cliques
        .filter(|&idx| idx != clique_idx)
        .map(centre)
        .collect();
    let n = outside.len().max(1) as f64;
    let sum = outside
        .iter()
        .fold((0.0, 0.0), |sum, place| (sum.0 + place.0, sum.1 + place.1));
    (outside.len(), (sum.0 / n, sum.1 / n))
}

// Nodes with most neighbours outside choose first among the places, the nearest to those neighbours,
// so that edges between cliques are short and cross few nodes.
fn nearest_slots(
    clique: &[usize],
    mut slots: Vec<Place>,
    outside: impl Fn(&usize) -> (usize, Place),
) -> Vec<(usize, Place)> {
    let mut nodes: Vec<(usize, usize, Place)> = clique
        .iter()
        .map(|node| {
            let (n_outside, centre) = outside(node);
            (*node, n_outside, centre)
        })
        .collect();
    nodes.sort_by_key(|&(_, n_outside, _)| std::cmp::Reverse(n_outside));
    let nearest = |(node, n_outside, centre): (usize, usize, Place)| {
        let by_distance = |&a: &usize, &b: &usize| {
            distance(slots[a], centre).total_cmp(&distance(slots[b], centre))
        };
        let slot_idx = match n_outside {
            0 => 0,
            _ => (0..slots.len()).min_by(by_distance).unwrap_or(0),
        };
        (node, slots.remove(slot_idx))
    };
    nodes.into_iter().map(nearest).collect()
}

/// The nodes along a ring, or by number if every node has its neighbours at the same offsets. None for
/// other graphs.
pub(super) fn circle_order(graph: &Graph) -> Option<Vec<usize>> {
    let n = graph.n_nodes;
    if n == 0 {
        return None;
    }
    let offsets = |node: usize| {
        let offsets = graph.neighbours[node]
            .iter()
            .map(|&other| (other + n - node) % n);
        let mut offsets: Vec<usize> = offsets.collect();
        offsets.sort_unstable();
        offsets
    };
    let first = offsets(0);
    let is_circulant = (1..n).all(|node| offsets(node) == first);
    if is_circulant {
        return Some((0..n).collect());
    }
    let mut order = vec![0];
    let mut previous = None;
    while let Some(&node) = order.last() {
        let [a, b] = graph.neighbours[node][..] else {
            return None;
        };
        let next = if previous == Some(a) { b } else { a };
        if next == order[0] {
            break;
        }
        previous = Some(node);
        order.push(next);
    }
    (order.len() == n).then_some(order)
}

// Each pair of nodes in turn is moved towards the distance that it has along edges; by less and less,
// and near pairs more than far ones (stress by stochastic gradient descent: Zheng, Pawar and Goodman,
// arXiv:1710.04626).
fn by_distances(graph: &Graph) -> Vec<Place> {
    let n = graph.n_nodes;
    let mut rng = seed::rng(0, 0);
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut rng);
    let mut places = vec![(0.5, 0.5); n];
    for (i, &node) in order.iter().enumerate() {
        places[node] = on_circle((0.0, 0.0), 1.0, i, n);
    }
    let mut pairs = pairs(graph);
    let longest = pairs.iter().map(|pair| pair.2).fold(1.0, f64::max);
    for pass in 0..N_PASSES {
        pairs.shuffle(&mut rng);
        // From moving every pair all the way to moving neighbours a tenth of it.
        let progress = pass as f64 / (N_PASSES - 1) as f64;
        let step = longest.powi(2) * (0.1 / longest.powi(2)).powf(progress);
        for &(a, b, wanted) in &pairs {
            let share = (step / (wanted * wanted)).min(1.0);
            move_apart(&mut places, a, b, wanted, share);
        }
    }
    within_square(&mut places);
    places
}

fn move_apart(places: &mut [Place], a: usize, b: usize, wanted: f64, share: f64) {
    let found = distance(places[a], places[b]);
    if found < 1e-9 {
        return;
    }
    let part = share * (found - wanted) / (2.0 * found);
    let (dx, dy) = (places[b].0 - places[a].0, places[b].1 - places[a].1);
    places[a] = (places[a].0 + part * dx, places[a].1 + part * dy);
    places[b] = (places[b].0 - part * dx, places[b].1 - part * dy);
}

// All pairs of nodes with the edges between them; parts without a path keep some distance.
fn pairs(graph: &Graph) -> Vec<(usize, usize, f64)> {
    let mut pairs = Vec::new();
    let mut longest = 1;
    for a in 0..graph.n_nodes {
        let hops = hops(graph, a);
        longest = hops
            .iter()
            .flatten()
            .fold(longest, |longest, &hops| longest.max(hops));
        pairs.extend((a + 1..graph.n_nodes).map(|b| (a, b, hops[b])));
    }
    let unreached = longest as f64 + 1.0;
    let distance = |hops: Option<usize>| hops.map_or(unreached, |hops| hops as f64);
    pairs
        .into_iter()
        .map(|(a, b, hops)| (a, b, distance(hops)))
        .collect()
}

fn hops(graph: &Graph, from: usize) -> Vec<Option<usize>> {
    let mut hops = vec![None; graph.n_nodes];
    hops[from] = Some(0);
    let mut queue = VecDeque::from([(from, 0)]);
    while let Some((node, n_hops)) = queue.pop_front() {
        for &other in &graph.neighbours[node] {
            if hops[other].is_none() {
                hops[other] = Some(n_hops + 1);
                queue.push_back((other, n_hops + 1));
            }
        }
    }
    hops
}

fn within_square(places: &mut [Place]) {
    let ends = |of: fn(&Place) -> f64| {
        let values = places.iter().map(of);
        values.fold((f64::MAX, f64::MIN), |(low, high), x| {
            (x.min(low), x.max(high))
        })
    };
    let ((left, right), (top, bottom)) = (ends(|place| place.0), ends(|place| place.1));
    let size = (right - left).max(bottom - top).max(1e-9);
    let middle = ((left + right) / 2.0, (top + bottom) / 2.0);
    for place in places {
        let scaled = |value: f64, middle: f64| 0.5 + 0.96 * (value - middle) / size;
        *place = (scaled(place.0, middle.0), scaled(place.1, middle.1));
    }
}

fn distance(a: Place, b: Place) -> f64 {
    (a.0 - b.0).hypot(a.1 - b.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mixing::MixingMatrix;

    // Both ways, with weights that make it doubly stochastic.
    fn graph(n_nodes: usize, edges: &[(u32, u32)], cliques: &[Vec<u32>]) -> Graph {
        let weight = 1.0 / n_nodes as f64;
        let mut rows: Vec<Vec<(u32, f64)>> = vec![Vec::new(); n_nodes];
        for &(a, b) in edges {
            rows[a as usize].push((b, weight));
            rows[b as usize].push((a, weight));
        }
        for (node, row) in rows.iter_mut().enumerate() {
            row.push((node as u32, 1.0 - row.len() as f64 * weight));
        }
        let mixing = MixingMatrix::new(rows).expect("doubly stochastic");
        Graph::new(&mixing, cliques, None)
    }

    #[test]
    fn a_shuffled_ring_is_a_circle() {
        let ring: [u32; 7] = [0, 4, 2, 6, 1, 5, 3];
        let edges: Vec<(u32, u32)> = (0..7).map(|i| (ring[i], ring[(i + 1) % 7])).collect();
        let graph = graph(7, &edges, &[]);
        let order = circle_order(&graph).expect("a ring");
        assert_eq!(order, [0, 3, 5, 1, 6, 2, 4]);
        let places = places(&graph);
        let side = distance(places[0], places[4]);
        for (a, b) in edges {
            let length = distance(places[a as usize], places[b as usize]);
            assert!((length - side).abs() < 1e-9);
        }
    }

    #[test]
    fn two_rings_are_no_circle() {
        let edges = [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)];
        assert_eq!(circle_order(&graph(6, &edges, &[])), None);
    }

    #[test]
    fn distances_unfold_a_path_and_a_grid() {
        let path: Vec<(u32, u32)> = (0..9).map(|i| (i, i + 1)).collect();
        let places = by_distances(&graph(10, &path, &[]));
        let ends = distance(places[0], places[9]);
        assert!(ends > 0.9, "the ends are {ends} apart");
        let side = 6;
        let at = |x: u32, y: u32| y * side + x;
        let mut edges = Vec::new();
        for y in 0..side {
            edges.extend((1..side).map(|x| (at(x - 1, y), at(x, y))));
            edges.extend((1..side).map(|x| (at(y, x - 1), at(y, x))));
        }
        let places = by_distances(&graph(36, &edges, &[]));
        let length = |&(a, b): &(u32, u32)| distance(places[a as usize], places[b as usize]);
        let lengths: Vec<f64> = edges.iter().map(length).collect();
        let longest = lengths.iter().copied().fold(0.0, f64::max);
        let shortest = lengths.iter().copied().fold(1.0, f64::min);
        assert!(longest < 2.0 * shortest, "{shortest} to {longest}");
    }

    #[test]
    fn cliques_are_apart_and_face_their_neighbours() {
        let cliques: Vec<Vec<u32>> = vec![vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9, 10, 11]];
        let mut edges = vec![(3, 4), (7, 8), (11, 0)];
        for clique in &cliques {
            edges.extend(
                clique
                    .iter()
                    .flat_map(|&a| (a + 1..clique[0] + 4).map(move |b| (a, b))),
            );
        }
        let graph = graph(12, &edges, &cliques);
        let places = places(&graph);
        let within = edges[3..]
            .iter()
            .map(|&(a, b)| distance(places[a as usize], places[b as usize]));
        let widest = within.fold(0.0, f64::max);
        for &(a, b) in &edges[..3] {
            let between = distance(places[a as usize], places[b as usize]);
            let other = |node: u32| cliques[a as usize / 4].contains(&node);
            let nearer = (0..12).filter(|&node| other(node)).filter(|&node| {
                distance(places[node as usize], places[b as usize]) < between - 1e-9
            });
            assert!(nearer.count() <= 1, "edge {a}–{b} does not face its clique");
        }
        assert!(widest < 0.36, "cliques of width {widest}");
    }

    #[test]
    fn any_graph_has_finite_places_in_the_square() {
        for (n_nodes, edges) in [
            (1, vec![]),
            (2, vec![]),
            (2, vec![(0, 1)]),
            (5, vec![(0, 1)]),
        ] {
            let places = places(&graph(n_nodes, &edges, &[]));
            assert_eq!(places.len(), n_nodes);
            let inside =
                |place: &Place| (0.0..=1.0).contains(&place.0) && (0.0..=1.0).contains(&place.1);
            assert!(places.iter().all(inside), "{places:?}");
            assert_eq!(places, super::places(&graph(n_nodes, &edges, &[])));
        }
    }
}
