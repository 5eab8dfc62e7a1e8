"""What each of two processes runs: the reference of samples of which some were scored before."""

import json
import sys
from pathlib import Path

from torch import distributed

from learners.training.passes import Passes
from learners.training.reference import reference_logps
from learners.training.score import PolicySums, Scorer
from learners.training.workers import Workers, stop_workers
from tests.learners.models import tiny_llama
from tests.learners.training.test_passes import CPU
from tests.learners.training.test_reference import SAMPLES, flat

if __name__ == "__main__":
    distributed.init_process_group("gloo")
    model, done = tiny_llama(), []
    workers = Workers(distributed.get_world_size(), distributed.get_rank(), CPU)
    scorer = Scorer(PolicySums(model), Passes(model, CPU), workers)
    found = reference_logps(
        scorer, flat(SAMPLES), key=["test"], width=2, progress=lambda now, _: done.append(now)
    )
    logps = workers.gather(found.logps.view(-1, 2).tolist())
    if workers.main:
        Path(sys.argv[1]).write_text(json.dumps({"logps": logps, "done": done}))
    stop_workers()
