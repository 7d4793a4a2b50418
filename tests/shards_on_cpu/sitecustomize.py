"""Python runs this first: lets accelerate divide a model over CPU processes (FSDP2, DeepSpeed), not on GPUs only."""

import sys
from importlib.machinery import PathFinder, SourceFileLoader

CHANGES = [
    ('            if not cpu and self.backend != "xla":', '            if self.backend != "xla":'),
    ('"ACCELERATE_USE_DEEPSPEED", "false").lower() == "true" and not cpu:', '"ACCELERATE_USE_DEEPSPEED") == "true":'),
    ("Type.MULTI_NEURON,\n            ]:\n", "Type.MULTI_NEURON, DistributedType.MULTI_CPU,\n            ]:\n"),
]


class Patched(SourceFileLoader):
    def get_code(self, fullname):
        text = self.get_data(self.path).decode()
        for old, new in CHANGES:
            assert text.count(old) == 1, f"accelerate/state.py has changed: {old}"
            text = text.replace(old, new)
        return compile(text, self.path, "exec")


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name != "accelerate.state":
            return None
        spec = PathFinder.find_spec(name, path)
        spec.loader = Patched(name, spec.origin)
        return spec


sys.meta_path.insert(0, Finder)
