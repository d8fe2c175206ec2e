use super::*;

/// What a process with these variables, written `NAME=value` with blanks between, takes itself for.
fn read(variables: &str) -> Option<Launched> {
    let pairs: Vec<_> = variables.split_whitespace().map(|pair| pair.split_once('=').unwrap()).collect();
    assert!(pairs.iter().all(|(name, _)| VARIABLES.contains(name) || !is_read(name)), "{variables}");
    launched_by(|name| pairs.iter().find(|pair| pair.0 == name).map(|pair| pair.1.to_owned()))
}

/// Whether the code asks for the variable `name`.
fn is_read(name: &str) -> bool {
    let code = include_str!("../environment.rs");
    code.contains(&format!("(\"{name}\")"))
}

/// Launcher, rank, ranks, local rank, local ranks, whether MPI can be joined.
type Place = (Launcher, usize, Option<usize>, usize, usize, bool);

fn place(launched: &Launched) -> Place {
    let Launched { launcher, rank, ranks, local_rank, local_ranks, has_mpi, .. } = *launched;
    (launcher, rank, ranks, local_rank, local_ranks, has_mpi)
}

const TORCHRUN: &str = "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=host1 MASTER_PORT=29400 \
                        TORCHELASTIC_RUN_ID=x GROUP_RANK=1";
const SRUN: &str = "SLURM_JOB_ID=123456 SLURM_NTASKS=6 SLURM_STEP_NUM_TASKS=6 SLURM_PROCID=4 SLURM_LOCALID=1 \
                    SLURM_NODEID=1 SLURM_STEP_TASKS_PER_NODE=3(x2) SLURM_STEP_NODELIST=gpu[07-08]";
const HYDRA: &str = "PMI_RANK=1 PMI_SIZE=4 PMI_FD=9 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=4 HYDI_CONTROL_FD=7";
const OPEN_MPI: &str = "OMPI_COMM_WORLD_RANK=5 OMPI_COMM_WORLD_SIZE=8 OMPI_COMM_WORLD_LOCAL_RANK=1 \
                        OMPI_COMM_WORLD_LOCAL_SIZE=4 PMIX_RANK=5 PMIX_NAMESPACE=prterun-1";

#[test]
fn every_launcher_is_understood() {
    use Launcher::*;
    let pmix_in_slurm = format!("{SRUN} PMIX_RANK=4 PMIX_NAMESPACE=slurm.pmix.1.0");
    let pmi2_in_slurm = format!("{SRUN} PMI_RANK=4 PMI_SIZE=6 PMI_FD=5");
    let cases: [(&str, Place); 9] = [
        (TORCHRUN, (Torchrun, 3, Some(4), 1, 2, false)),
        ("RANK=0 WORLD_SIZE=2", (Torchrun, 0, Some(2), 0, 1, false)),
        (SRUN, (Slurm, 4, Some(6), 1, 3, false)),
        (&pmix_in_slurm, (Slurm, 4, Some(6), 1, 3, true)),
        (&pmi2_in_slurm, (Slurm, 4, Some(6), 1, 3, true)),
        (HYDRA, (Hydra, 1, Some(4), 1, 4, true)),
        ("PMI_RANK=0 PMI_SIZE=1 PMI_FD=5 MPI_LOCALNRANKS=1 MPI_LOCALRANKID=0", (Hydra, 0, Some(1), 0, 1, true)),
        (OPEN_MPI, (OpenMpi, 5, Some(8), 1, 4, true)),
        ("PMIX_RANK=2 PMIX_NAMESPACE=x", (Pmix, 2, None, 0, 1, true)),
    ];
    for (variables, expected) in cases {
        assert_eq!(read(variables).as_ref().map(place), Some(expected), "{variables}");
    }
}

#[test]
fn what_is_no_launcher_is_none() {
    for variables in [
        "",
        // A batch script: one process, however many the allocation is for.
        "SLURM_JOB_ID=7 SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_TASKS_PER_NODE=8",
        "SLURM_NTASKS=8",
        "WORLD_SIZE=2",
        "RANK=1",
        "MASTER_ADDR=host MASTER_PORT=1234",
        "RANK=a WORLD_SIZE=2",
        "PMI_RANK=1",
    ] {
        assert_eq!(read(variables), None, "{variables}");
    }
}

#[test]
fn the_innermost_launcher_wins() {
    use Launcher::*;
    // (The variables of both, who started the process, its rank, its ranks.)
    let torchrun_on_each_node = format!("{TORCHRUN} SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0");
    let hydra_in_slurm = format!("{HYDRA} SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_LOCALID=0");
    let hydra_over_nodes = format!("{HYDRA} SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0");
    let one_of_each_task = "PMI_RANK=0 PMI_SIZE=1 SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4".to_owned();
    let mpi_in_a_container = format!("{HYDRA} RANK=0 WORLD_SIZE=2 MASTER_ADDR=pod-0 MASTER_PORT=23456");
    let torchrun_in_mpi = format!("{TORCHRUN} PMI_RANK=0 PMI_SIZE=2");
    let torchrun_over_singleton = format!("{TORCHRUN} PMI_RANK=0 PMI_SIZE=1");
    let cases = [
        (torchrun_on_each_node, Torchrun, 3, 4),
        (hydra_in_slurm, Hydra, 1, 4),
        (hydra_over_nodes, Hydra, 1, 4),
        (one_of_each_task, Hydra, 0, 1),
        (mpi_in_a_container, Hydra, 1, 4),
        (torchrun_in_mpi, Torchrun, 3, 4),
        (torchrun_over_singleton, Torchrun, 3, 4),
    ];
    for (variables, launcher, rank, ranks) in cases {
        let launched = read(&variables).unwrap();
        assert_eq!((launched.launcher, launched.rank, launched.ranks), (launcher, rank, Some(ranks)), "{variables}");
    }
    // Both say the same: MPI can be joined, and the meeting point is known too.
    let translated = read(&format!("{HYDRA} RANK=1 WORLD_SIZE=4 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=9")).unwrap();
    assert_eq!(place(&translated), (Hydra, 1, Some(4), 1, 4, true));
    assert_eq!(translated.meeting, Some(("a".into(), 9)));
}

#[test]
fn ranks_know_where_to_meet() {
    let meeting = |variables: &str| read(variables).unwrap().meeting;
    assert_eq!(meeting(TORCHRUN), Some(("host1".into(), 29400)));
    assert_eq!(meeting(SRUN), Some(("gpu07".into(), 23456)));
    assert_eq!(meeting(&format!("{SRUN} MASTER_ADDR=a MASTER_PORT=4")), Some(("a".into(), 4)));
    assert_eq!(meeting("RANK=0 WORLD_SIZE=2"), None);
    for (list, host) in
        [("a", "a"), ("a,b", "a"), ("n[3]", "n3"), ("r[1-2]n[05,07]-x,y", "r1n05-x"), ("n-1,n-2", "n-1")]
    {
        assert_eq!(first_host(list).as_deref(), Some(host));
    }
    assert_eq!((first_host(""), first_host("a[1-2")), (None, None));
}

#[test]
fn tasks_are_counted_by_node() {
    let counts = [0, 1, 2, 3].map(|node| tasks_of_node("4(x2),3", node));
    assert_eq!(counts, [Some(4), Some(4), Some(3), None]);
    assert_eq!(tasks_of_node("x", 0), None);
}

#[test]
fn numbers_that_cannot_be_are_refused_with_the_nearest_that_can() {
    let refused = |variables: &str| read(variables).unwrap().check().unwrap_err();
    for (ranks, hint) in [(3, "use 2 or 4 ranks"), (6, "use 4 or 8 ranks"), (9, "use 8 or 16 ranks")] {
        let refused = refused(&format!("RANK=1 WORLD_SIZE={ranks}"));
        assert_eq!((refused.exit, refused.hint.as_deref()), (Exit::Config, Some(hint)));
        assert!(refused.message.contains("torchrun") && refused.message.contains(&ranks.to_string()));
    }
    assert!(refused("RANK=2 WORLD_SIZE=2").message.contains("this is rank 2"));
    for variables in ["RANK=0 WORLD_SIZE=1", "RANK=7 WORLD_SIZE=8", "PMIX_RANK=2"] {
        assert!(read(variables).unwrap().check().is_ok(), "{variables}");
    }
}
