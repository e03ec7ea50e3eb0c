# Features of the true pictures, metrics per method and subject, tables.
rule extract_features:
    input:
        stimuli=made(layout.STIMULI),
        prepared=lambda wildcards: prepared(viewers(wildcards)),
        embedding=network("embedding"),
        classifier=network("classifier"),
    output:
        made(layout.FEATURES),
    log:
        log_of(layout.FEATURES),
    benchmark:
        benchmark_of(layout.FEATURES)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("features")
    resources:
        **resources_of("features"),
    params:
        **call_of("features"),
    message:
        "Compute the measuring networks' features of the test pictures of {wildcards.dataset} ({wildcards.stimuli})"
    shell:
        "{params.command} 2> {log}"


rule score_reconstructions:
    input:
        reconstructions=lambda wildcards: [
            made(STUDY.measured, method=method, **wildcards)
            for method in STUDY.methods
        ],
        controls=of_drawn(layout.CONTROLS),
        features=of_drawn(layout.FEATURES),
        stimuli=stimuli_of_subject(layout.STIMULI),
        prepared=made(layout.PREPARED),
        embeddings=stimuli_of_subject(layout.EMBEDDINGS),
        embedding=network("embedding"),
        classifier=network("classifier"),
    output:
        directory(made(layout.METRICS)),
    log:
        log_of(layout.METRICS),
    benchmark:
        benchmark_of(layout.METRICS)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("score")
    resources:
        **resources_of("score"),
    params:
        **call_of("score"),
    message:
        "Measure the reconstructions of {wildcards.subject} ({wildcards.dataset}) by all methods, with controls"
    shell:
        "{params.command} 2> {log}"


rule check_generalisation:
    input:
        reconstructions=lambda wildcards: [
            made(STUDY.measured, method=method, **wildcards)
            for method in STUDY.methods
        ],
        metrics=made(layout.METRICS),
        stimuli=stimuli_of_subject(layout.STIMULI),
        prepared=made(layout.PREPARED),
        embeddings=stimuli_of_subject(layout.EMBEDDINGS),
        training_prepared=prepared(STUDY.pairs("train")),
        training_embeddings=embeddings(STUDY.pairs("train")),
        training_stimuli=[
            stimulus_file(layout.STIMULI, *pair) for pair in STUDY.pairs("train")
        ],
        embedding=network("embedding"),
        classifier=network("classifier"),
        controls=of_drawn(layout.CONTROLS),
    output:
        made(layout.GENERALISATION),
    log:
        log_of(layout.GENERALISATION),
    benchmark:
        benchmark_of(layout.GENERALISATION)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("generalise")
    resources:
        **resources_of("generalise"),
    params:
        **call_of("generalise"),
    message:
        "Check what of {wildcards.subject} ({wildcards.dataset}) holds beyond the training pictures"
    shell:
        "{params.command} 2> {log}"


rule score_decoded:
    input:
        decoded=decoded(layout.DECODED),
        reconstructions=decoded(layout.RECONSTRUCTION),
        stimuli=stimuli_of_subject(layout.STIMULI),
        prepared=made(layout.PREPARED),
        embeddings=stimuli_of_subject(layout.EMBEDDINGS),
        candidates=candidates(layout.CANDIDATES),
        candidate_embeddings=candidates(layout.EMBEDDED_CANDIDATES),
        embedding=network("embedding"),
        classifier=network("classifier"),
    output:
        made(layout.IMAGINED),
    log:
        log_of(layout.IMAGINED),
    benchmark:
        benchmark_of(layout.IMAGINED)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("score-decoded")
    resources:
        **resources_of("score-decoded"),
    params:
        **call_of("score-decoded"),
    message:
        "Measure the set {wildcards.further} of {wildcards.subject} ({wildcards.dataset}) where labels say what was imagined"
    shell:
        "{params.command} 2> {log}"


rule compare_budgets:
    input:
        prepared=made(layout.PREPARED),
        embeddings=stimuli_of_subject(layout.EMBEDDINGS),
        shared=shared,
        taught=taught,
        diffusion=network("diffusion"),
        autoencoder=network("autoencoder"),
        embedding=network("embedding"),
        embedding_prior=drawn_by,
        features=of_drawn(layout.FEATURES),
        stimuli=stimuli_of_subject(layout.STIMULI),
        training_prepared=lambda wildcards: prepared(teachers(wildcards)),
        training_embeddings=lambda wildcards: embeddings(teachers(wildcards)),
    output:
        made(layout.TRANSFER),
    log:
        log_of(layout.TRANSFER),
    benchmark:
        benchmark_of(layout.TRANSFER)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("transfer")
    resources:
        **resources_of("transfer"),
    params:
        **call_of("transfer"),
    message:
        "See how far {wildcards.subject} ({wildcards.dataset}) gets with few trials ({wildcards.method})"
    shell:
        "{params.command} 2> {log}"


rule make_tables:
    input:
        metrics=results_of("score"),
        models=trained(),
        transfer=results_of("transfer"),
        generalisation=results_of("generalise"),
        imagined=results_of("score-decoded"),
        decoded=results_of("decode"),
    output:
        report(
            directory(made(layout.TABLES)),
            patterns=["{table}.csv"],
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    log:
        log_of(layout.TABLES),
    benchmark:
        benchmark_of(layout.TABLES)
    conda:
        "../../envs/networks.yaml"
    threads: threads_of("tabulate")
    resources:
        **resources_of("tabulate"),
    params:
        **call_of("tabulate"),
    message:
        "Make the tables"
    shell:
        "{params.command} 2> {log}"
