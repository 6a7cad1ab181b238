"""The tests: folders as in the package, and beside them those of the project as a whole.

- `layers`: what the layers of a network are, on the smallest network for each question; cases in `support/layers`;
- `libraries`, `examples`, `benchmarks`: networks of other libraries, the scripts of `examples`, programs that measure;
- `support`: cases, references, trainings and processes that tests share; no test imports another;
- here: documents, packaging, releases, and the structure of the package.

CONTRIBUTING.md says how tests are written and how a case is added.
"""
