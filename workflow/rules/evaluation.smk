# Features of the true pictures, metrics per method and subject, tables.
rule extract_features:
    input:
        stimuli=f"{RESULTS}/prepared/{{dataset}}/{{stimuli}}.h5",
        prepared=lambda wildcards: prepared(viewers(wildcards)),
        embedding=network("embedding"),
        classifier=network("classifier"),
    output:
        f"{RESULTS}/features/{{dataset}}/{{stimuli}}.h5",
    log:
        f"{LOGS}/features/{{dataset}}/{{stimuli}}.log",
    benchmark:
        f"{BENCHMARKS}/features/{{dataset}}/{{stimuli}}.tsv"
    conda:
        "../../envs/networks.yaml"
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=grow(8000),
        runtime=grow(240),
    params:
        study=study_file,
        settings=settings_of("features"),
        code=code_of("features"),
        classifier=option("classifier"),
    message:
        "Compute the measuring networks' features of the test pictures of {wildcards.dataset} ({wildcards.stimuli})"
    shell:
        "python -m unimind features --study {params.study} --stimuli {input.stimuli} --prepared {input.prepared}"
        " --embedding {input.embedding} {params.classifier} --out {output} 2> {log}"


rule score_reconstructions:
    input:
        reconstruction=f"{RESULTS}/reconstructions/{{method}}/{{dataset}}/{{subject}}.h5",
        controls=stimuli_of_subject("reconstructions/controls"),
        features=stimuli_of_subject("features"),
        stimuli=stimuli_of_subject("prepared"),
        prepared=f"{RESULTS}/prepared/{{dataset}}/{{subject}}.h5",
        embeddings=stimuli_of_subject("embeddings"),
        embedding=network("embedding"),
        classifier=network("classifier"),
    output:
        f"{RESULTS}/metrics/{{method}}/{{dataset}}/{{subject}}.json",
    log:
        f"{LOGS}/metrics/{{method}}/{{dataset}}/{{subject}}.log",
    benchmark:
        f"{BENCHMARKS}/metrics/{{method}}/{{dataset}}/{{subject}}.tsv"
    conda:
        "../../envs/networks.yaml"
    threads: 1
    resources:
        gpu=GPU,
        mem_mb=grow(8000),
        runtime=grow(240),
    params:
        study=study_file,
        settings=settings_of(
            "score", method="method", dataset="dataset", subject="subject"
        ),
        code=code_of("score"),
        classifier=option("classifier"),
    message:
        "Measure the reconstructions of {wildcards.subject} ({wildcards.dataset}) by {wildcards.method}, with controls"
    shell:
        "python -m unimind score --study {params.study} --method {wildcards.method} --dataset {wildcards.dataset}"
        " --subject {wildcards.subject} --reconstruction {input.reconstruction} --controls {input.controls}"
        " --features {input.features} --stimuli {input.stimuli} --prepared {input.prepared}"
        " --embeddings {input.embeddings} --embedding {input.embedding} {params.classifier} --out {output} 2> {log}"


rule compare_budgets:
    input:
        prepared=f"{RESULTS}/prepared/{{dataset}}/{{subject}}.h5",
        embeddings=stimuli_of_subject("embeddings"),
        shared=shared_for_transfer,
        diffusion=network("diffusion"),
        autoencoder=network("autoencoder"),
        embedding=network("embedding"),
        features=stimuli_of_subject("features"),
        stimuli=stimuli_of_subject("prepared"),
        training_prepared=lambda wildcards: prepared(teachers_for_transfer(wildcards)),
        training_embeddings=lambda wildcards: embeddings(
            teachers_for_transfer(wildcards)
        ),
    output:
        f"{RESULTS}/transfer/{{method}}/{{dataset}}/{{subject}}.json",
    log:
        f"{LOGS}/transfer/{{method}}/{{dataset}}/{{subject}}.log",
    benchmark:
        f"{BENCHMARKS}/transfer/{{method}}/{{dataset}}/{{subject}}.tsv"
    conda:
        "../../envs/networks.yaml"
    threads: STUDY.threads
    resources:
        gpu=GPU,
        mem_mb=grow(24000),
        runtime=grow(1440),
    params:
        study=study_file,
        settings=settings_of("transfer", method="method", dataset="dataset"),
        code=code_of_comparison,
        shared=option("shared"),
        training_prepared=option("training-prepared"),
        training_embeddings=option("training-embeddings"),
        checkpoints=checkpoints,
    message:
        "See how far {wildcards.subject} ({wildcards.dataset}) gets with few trials ({wildcards.method})"
    shell:
        "python -m unimind transfer --study {params.study} --method {wildcards.method} --dataset {wildcards.dataset}"
        " --subject {wildcards.subject} --prepared {input.prepared} --embeddings {input.embeddings} {params.shared}"
        " --diffusion {input.diffusion} --autoencoder {input.autoencoder} --embedding {input.embedding}"
        " --features {input.features} --stimuli {input.stimuli} {params.training_prepared} {params.training_embeddings}"
        " --checkpoints {params.checkpoints} --out {output} 2> {log}"


rule make_tables:
    input:
        metrics=of_all_subjects("metrics", ".json"),
        models=all_models(),
        transfer=curves(),
    output:
        report(
            directory(f"{RESULTS}/tables"),
            patterns=["{table}.csv"],
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "{table}"},
        ),
    log:
        f"{LOGS}/tables.log",
    benchmark:
        f"{BENCHMARKS}/tables.tsv"
    conda:
        "../../envs/networks.yaml"
    threads: 1
    resources:
        mem_mb=grow(4000),
        runtime=grow(60),
    params:
        study=study_file,
        settings=settings_of("tabulate"),
        code=code_of("tabulate"),
        transfer=option("transfer"),
    message:
        "Make the tables"
    shell:
        "python -m unimind tabulate --study {params.study} --metrics {input.metrics} --models {input.models}"
        " {params.transfer} --out {output} 2> {log}"
