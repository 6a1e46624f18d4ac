"""Selection inside SGLang's decode graphs, and Lynx's kernels in front of its runner."""
