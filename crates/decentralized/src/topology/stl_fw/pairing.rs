//! A permutation made its own inverse, for undirected graphs.
//!
//! Where costs are symmetric, a cycle of even length is two ways of pairing its nodes, every other
//! edge each, of which the cheaper costs no more than the cycle: a graph of pairs gives a node one
//! neighbour where `(P + Pᵀ)/2` would give it two. A cycle of odd length has to leave a node out;
//! those left out are paired among themselves.

use super::oracle::Costs;

/// Pairs of nodes at hardly more than the cost of `to`: `pairs[pairs[i]] = i`, and `pairs[i] = i` for
/// a node alone. `costs` must be symmetric.
pub(super) fn pair(costs: &Costs<'_>, to: &[u32]) -> Vec<u32> {
    let mut pairs: Vec<u32> = (0..to.len() as u32).collect();
    let mut is_seen = vec![false; to.len()];
    let mut alone = Vec::new();
    for start in 0..to.len() {
        let mut cycle = Vec::new();
        let mut node = start;
        while !std::mem::replace(&mut is_seen[node], true) {
            cycle.push(node);
            node = to[node] as usize;
        }
        if !cycle.is_empty() {
            alone.extend(pair_cycle(costs, &cycle, &mut pairs));
        }
    }
    pair_greedily(costs, alone, &mut pairs);
    pairs
}

/// Takes every other edge of a cycle; the node left out of an odd one is returned.
fn pair_cycle(costs: &Costs<'_>, cycle: &[usize], pairs: &mut [u32]) -> Option<usize> {
    let len = cycle.len();
    // Of the edge from a node of the cycle to the next.
    let edges: Vec<f64> = (0..len)
        .map(|at| costs.cost(cycle[at], cycle[(at + 1) % len]))
        .collect();
    let first = if len.is_multiple_of(2) {
        let sum = |first: usize| edges[first..].iter().step_by(2).sum::<f64>();
        usize::from(sum(1) < sum(0))
    } else {
        (cheapest_to_leave_out(&edges) + 1) % len
    };
    for edge in 0..len / 2 {
        let (a, b) = (
            cycle[(first + 2 * edge) % len],
            cycle[(first + 2 * edge + 1) % len],
        );
        (pairs[a], pairs[b]) = (b as u32, a as u32);
    }
    (len % 2 == 1).then(|| cycle[(first + len - 1) % len])
}

/// Which node of an odd cycle to leave out, so that every other edge of the rest costs the least.
fn cheapest_to_leave_out(edges: &[f64]) -> usize {
    let len = edges.len();
    // Without node 0 the edges 1, 3, … stay. Two nodes further on, one edge goes and one comes.
    let mut sum: f64 = edges[1.min(len)..].iter().step_by(2).sum();
    let mut best = (sum, 0);
    let mut node = 0;
    for _ in 1..len {
        sum += edges[node] - edges[(node + 1) % len];
        node = (node + 2) % len;
        if sum < best.0 {
            best = (sum, node);
        }
    }
    best.1
}

/// Pairs each node with the cheapest of the others, unless both are better off alone.
fn pair_greedily(costs: &Costs<'_>, mut alone: Vec<usize>, pairs: &mut [u32]) {
    while let Some(node) = alone.pop() {
        let cost = |&at: &usize| costs.cost(node, alone[at]);
        let cheapest = (0..alone.len()).min_by(|a, b| cost(a).total_cmp(&cost(b)));
        let Some(at) = cheapest else { return };
        let other = alone[at];
        let apart = costs.cost(node, node) + costs.cost(other, other);
        if 2.0 * costs.cost(node, other) < apart {
            alone.swap_remove(at);
            (pairs[node], pairs[other]) = (other as u32, node as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes on a line, distance as cost: `(i − j)² = (i², i, 1)·(1, −2j, j²)`.
    fn on_a_line(points: &[f64]) -> Costs<'static> {
        Costs {
            rank: 3,
            left: points.iter().flat_map(|x| [x * x, *x, 1.0]).collect(),
            right: points.iter().flat_map(|x| [1.0, -2.0 * x, x * x]).collect(),
            lambda: 0.0,
            weights: &[],
        }
    }

    #[test]
    fn cycles_become_their_cheapest_pairs() {
        let check = |points: &[f64], to: &[u32], expected: &[u32]| {
            assert_eq!(pair(&on_a_line(points), to), expected, "{to:?}");
        };
        check(&[0.0, 1.0], &[1, 0], &[1, 0]);
        // An even cycle has two ways.
        check(&[0.0, 1.0, 5.0, 6.0], &[1, 2, 3, 0], &[1, 0, 3, 2]);
        check(&[0.0, 5.0, 6.0, 1.0], &[1, 2, 3, 0], &[3, 2, 1, 0]);
        // An odd one leaves out whoever costs most.
        check(&[0.0, 9.0, 1.0], &[1, 2, 0], &[2, 1, 0]);
        check(
            &[0.0, 1.0, 30.0, 5.0, 6.0],
            &[1, 2, 3, 4, 0],
            &[1, 0, 2, 4, 3],
        );
    }

    #[test]
    fn nodes_left_out_are_paired_if_that_is_cheaper() {
        // Two cycles of three, of which nodes 1 and 4 are left out; alone a node costs nothing here.
        let points = [0.0, 9.0, 1.0, 20.0, 9.5, 21.0];
        let to = [1, 2, 0, 4, 5, 3];
        assert_eq!(pair(&on_a_line(&points), &to), [2, 1, 0, 5, 4, 3]);
        // To the negative of a distance every pair is better.
        let mut costs = on_a_line(&points);
        costs.left.iter_mut().for_each(|x| *x = -*x);
        let pairs = pair(&costs, &to);
        assert!(pairs.iter().enumerate().all(|(i, &j)| i != j as usize));
    }
}
