BENCHMARKS: dict[str, str] = {
    "detector": "workbench.benchmarks.detector:bench_detector",
    "reader": "workbench.benchmarks.reader:bench_reader",
    "base": "workbench.benchmarks.base:bench_base",
    "align": "workbench.benchmarks.align:bench_align",
    "overhead": "workbench.benchmarks.overhead:bench_overhead",
    "startup": "workbench.benchmarks.startup:bench_startup",
    "page": "workbench.benchmarks.page:bench_page",
    "runs": "workbench.benchmarks.runs:bench_runs",
    "tabs": "workbench.benchmarks.tabs:bench_tabs",
    "playground": "workbench.benchmarks.playground:bench_playground",
    "samplers": "workbench.benchmarks.samplers:bench_samplers",
    "rings": "workbench.benchmarks.rings:bench_rings",
    "anchor_noise": "workbench.benchmarks.anchor_noise:bench_anchor_noise",
    "judges": "workbench.benchmarks.judges:bench_judges",
    "credit": "workbench.benchmarks.credit:bench_credit",
    "methods": "workbench.benchmarks.methods:bench_methods",
}
"""Each benchmark by name as module:function; imported only when it runs. The function returns its figures."""
