# Figures, and the page that shows everything.
rule draw_figures:
    input:
        tables=f"{RESULTS}/tables",
        models=all_models(),
        reconstructions=of_all_subjects("reconstructions", ".h5"),
        stimuli=of_all_stimuli("prepared"),
        prepared=prepared(STUDY.pairs()),
        controls=of_all_stimuli("reconstructions/controls"),
        metrics=of_all_subjects("metrics", ".json"),
    output:
        report(
            directory(f"{RESULTS}/figures"),
            patterns=["{figure}.png"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        f"{LOGS}/figures.log",
    benchmark:
        f"{BENCHMARKS}/figures.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=grow(8000),
        runtime=grow(60),
    params:
        study=study_file,
        settings=settings_of("figures"),
        code=code_of("figures"),
    message:
        "Draw the figures"
    shell:
        "python -m unimind figures --study {params.study} --tables {input.tables} --models {input.models}"
        " --reconstructions {input.reconstructions} --stimuli {input.stimuli} --prepared {input.prepared}"
        " --controls {input.controls} --metrics {input.metrics} --out {output} 2> {log}"


rule write_report:
    input:
        overview=OVERVIEW,
        tables=f"{RESULTS}/tables",
        figures=f"{RESULTS}/figures",
        metrics=of_all_subjects("metrics", ".json"),
        models=all_models(),
    output:
        report(
            f"{RESULTS}/report.html",
            caption="../report/page.rst",
            category="Report",
            labels={"page": "The whole report"},
        ),
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{BENCHMARKS}/report.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        mem_mb=grow(4000),
        runtime=grow(60),
    params:
        study=study_file,
        settings=settings_of("report"),
        code=code_of("report"),
    message:
        "Write the report: {output}"
    shell:
        "python -m unimind report --study {params.study} --overview {input.overview} --tables {input.tables} --figures {input.figures}"
        " --metrics {input.metrics} --models {input.models} --out {output} 2> {log}"
