//! Whether the process was started as a rank of a job.

/// Variables in which launchers tell a rank how many there are: Open MPI, PMI (MPICH, Intel MPI).
/// Slurm's are left out: it sets them for programs that are no ranks as well.
const WORLD_SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// The number of ranks that the launcher has started, if there was one.
///
/// A program that was built without MPI asks this before it starts: under `mpirun -n 8` it would
/// otherwise do the same work eight times over.
pub fn n_ranks_launched() -> Option<usize> {
    n_ranks_of(|name| std::env::var(name).ok())
}

fn n_ranks_of(variable: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let sizes = WORLD_SIZES.iter().filter_map(|name| variable(name));
    sizes.filter_map(|size| size.trim().parse().ok()).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_known_by_their_variables() {
        let with = |set: &'static [(&str, &str)]| {
            n_ranks_of(|name| {
                let found = set.iter().find(|(known, _)| *known == name)?;
                Some(found.1.to_owned())
            })
        };
        assert_eq!(with(&[("OMPI_COMM_WORLD_SIZE", "8")]), Some(8));
        assert_eq!(with(&[("PMI_SIZE", "2")]), Some(2));
        assert_eq!(with(&[("SLURM_NTASKS", "4")]), None);
        assert_eq!(with(&[("PMI_SIZE", "many")]), None);
        assert_eq!(with(&[]), None);
    }
}
