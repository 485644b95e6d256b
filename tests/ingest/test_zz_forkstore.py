import os, itertools, time
import pytest
from torch.utils.data import DataLoader
from tests.ingest.made_views import make
from ingest.loader import *
from ingest.order import Cursor


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ctx,dw", [("spawn", 0), ("fork", 0), ("fork", 1)])
def test_it(bucket, ctx, dw):
    m = make(bucket, kind="png", frames=1)
    cur = Cursor(view_digest=m.view.digest, seed=0, global_batch=4)
    c = TorchClips(
        Part(root=bucket, view=m.view),
        cursor=cur,
        read=Frames(width=8, height=8),
        steps=3,
        work=Work(decode_workers=dw),
    )
    t = time.time()
    n = len(
        list(DataLoader(c, batch_size=None, num_workers=1, multiprocessing_context=ctx, timeout=20))
    )
    print(ctx, n, time.time() - t)
