"""Cost models that only the experiment uses: groups, crossed levels, drift."""
