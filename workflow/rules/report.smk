# Figures, and the page that shows everything.
rule draw_figures:
    input:
        tables=made(layout.TABLES),
        models=trained(),
        reconstructions=results_of("reconstruct", "predict"),
        stimuli=[
            made(layout.STIMULI, dataset=dataset, stimuli=name)
            for dataset, name in STUDY.stimulus_sets()
        ],
        prepared=prepared(STUDY.pairs()),
        controls=results_of("reconstruct-controls"),
        metrics=results_of("score"),
        generalisation=results_of("generalise"),
        decoded=results_of("decode"),
        candidates=results_of("candidates"),
    output:
        report(
            directory(made(layout.FIGURES)),
            patterns=["{figure}.png"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        log_of(layout.FIGURES),
    benchmark:
        benchmark_of(layout.FIGURES)
    conda:
        "../../envs/report.yaml"
    threads: threads_of("figures")
    resources:
        **resources_of("figures"),
    params:
        **call_of("figures"),
    message:
        "Draw the figures"
    shell:
        "{params.command} 2> {log}"


rule write_report:
    input:
        overview=OVERVIEW,
        inspected=inspected(),
        tables=made(layout.TABLES),
        figures=made(layout.FIGURES),
        metrics=results_of("score"),
        models=trained(),
        generalisation=results_of("generalise"),
    output:
        report(
            made(layout.REPORT),
            caption="../report/page.rst",
            category="Report",
            labels={"page": "The whole report"},
        ),
    log:
        log_of(layout.REPORT),
    benchmark:
        benchmark_of(layout.REPORT)
    conda:
        "../../envs/report.yaml"
    threads: threads_of("report")
    resources:
        **resources_of("report"),
    params:
        **call_of("report"),
    message:
        "Write the report: {output}"
    shell:
        "{params.command} 2> {log}"
