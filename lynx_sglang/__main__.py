"""``python -m lynx_sglang``: the same as the ``lynx-sglang`` command."""

import sys

from lynx_sglang.cli import main

sys.exit(main())
