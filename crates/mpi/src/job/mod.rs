//! The job itself, on the functions of MPI that the crate `mpi` declares.

mod collective;
mod comm;
mod ended;
mod exchange;
mod row_type;
mod world;

pub use collective::Collective;
pub use exchange::Exchange;
pub use world::World;
