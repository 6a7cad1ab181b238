"""Runs the code of documents."""

import contextlib
import io
import itertools
import re

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


class Page:
    """The Python blocks of a document, each with what it prints where a block of text follows it at once."""

    def __init__(self, path):
        self.path = path
        self.text = path.read_text()
        fences = list(FENCE.finditer(self.text))
        self.blocks = []
        for fence, following in itertools.zip_longest(fences, fences[1:]):
            if fence[1] != "python":
                continue
            is_output = following and following[1] == "text" and not self.text[fence.end() : following.start()].strip()
            self.blocks.append((fence, following[2] if is_output else None))

    def run(self, namespace, fence, expected):
        lines_before = self.text.count("\n", 0, fence.start(2))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * lines_before + fence[2], str(self.path), "exec"), namespace)
        if expected is not None:
            assert printed.getvalue() == expected
