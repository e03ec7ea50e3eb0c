# The frozen networks the methods stand on, and what they make of the pictures.
localrules:
    get_foundation,


rule get_foundation:
    input:
        embedding=foundations_before("embedding", "obtained"),
        autoencoder=foundations_before("autoencoder", "obtained"),
    output:
        directory(f"{RESULTS}/foundations/{{obtained}}"),
    log:
        f"{LOGS}/foundations/{{obtained}}.log",
    benchmark:
        f"{BENCHMARKS}/foundations/{{obtained}}.tsv"
    retries: 2
    conda:
        "../../envs/networks.yaml"
    threads: 1
    resources:
        mem_mb=16000,
        runtime=240,
    params:
        study=study_file,
        settings=settings_of("foundation", network="obtained"),
        code=code_of_foundation("obtained"),
        embedding=option("embedding"),
        autoencoder=option("autoencoder"),
    message:
        "Get the frozen network: {wildcards.obtained}"
    shell:
        "python -m unimind foundation --study {params.study} --name {wildcards.obtained} {params.embedding}"
        " {params.autoencoder} --out {output} 2> {log}"


rule train_foundation:
    input:
        checked=CHECKED,
        embedding=foundations_before("embedding", "trained"),
        autoencoder=foundations_before("autoencoder", "trained"),
        stimuli=all_training_stimuli("prepared"),
        embeddings=all_training_stimuli("embeddings"),
    output:
        directory(f"{RESULTS}/foundations/{{trained}}"),
    log:
        f"{LOGS}/foundations/{{trained}}.log",
    benchmark:
        f"{BENCHMARKS}/foundations/{{trained}}.tsv"
    priority: first_where_others_wait
    conda:
        "../../envs/networks.yaml"
    threads: STUDY.threads
    resources:
        gpu=cards_of("foundation"),
        mem_mb=grow(16000, processes_of("foundation")),
        runtime=grow(1440),
    params:
        study=study_file,
        launcher=launcher("foundation"),
        settings=settings_of("foundation", network="trained"),
        code=code_of_foundation("trained"),
        embedding=option("embedding"),
        autoencoder=option("autoencoder"),
        stimuli=option("stimuli"),
        embeddings=option("embeddings"),
        checkpoints=checkpoints,
    message:
        "Train the study's own frozen network: {wildcards.trained}"
    shell:
        "{params.launcher} -m unimind foundation --study {params.study} --name {wildcards.trained} {params.embedding}"
        " {params.autoencoder} {params.stimuli} {params.embeddings} --checkpoints {params.checkpoints}"
        " --out {output} 2> {log}"


rule embed_stimuli:
    input:
        stimuli=f"{RESULTS}/prepared/{{dataset}}/{{stimuli}}.h5",
        embedding=network("embedding"),
        autoencoder=network("autoencoder"),
    output:
        f"{RESULTS}/embeddings/{{dataset}}/{{stimuli}}.h5",
    log:
        f"{LOGS}/embeddings/{{dataset}}/{{stimuli}}.log",
    benchmark:
        f"{BENCHMARKS}/embeddings/{{dataset}}/{{stimuli}}.tsv"
    conda:
        "../../envs/networks.yaml"
    threads: STUDY.threads
    resources:
        gpu=GPU,
        mem_mb=grow(16000),
        runtime=grow(240),
    params:
        study=study_file,
        settings=settings_of("embed"),
        code=code_of("embed"),
    message:
        "Embed the pictures of {wildcards.dataset} ({wildcards.stimuli}): image embeddings and autoencoder latents"
    shell:
        "python -m unimind embed --study {params.study} --stimuli {input.stimuli} --embedding {input.embedding}"
        " --autoencoder {input.autoencoder} --out {output} 2> {log}"
