# Prepared fMRI in, pictures out; and the pictures to compare them with.
rule reconstruct_pictures:
    input:
        prepared=f"{RESULTS}/prepared/{{dataset}}/{{subject}}.h5",
        embeddings=stimuli_of_subject("embeddings"),
        stimuli=stimuli_of_subject("prepared"),
        model=model,
        diffusion=network("diffusion"),
        autoencoder=network("autoencoder"),
        embedding=network("embedding"),
    output:
        pictures=f"{RESULTS}/reconstructions/{{method}}/{{dataset}}/{{subject}}.h5",
        grid=report(
            f"{RESULTS}/reconstructions/{{method}}/{{dataset}}/{{subject}}.png",
            caption="../report/reconstructions.rst",
            category="Reconstructions",
            subcategory="{dataset}",
            labels={"subject": "{subject}", "method": "{method}"},
        ),
    log:
        f"{LOGS}/reconstructions/{{method}}/{{dataset}}/{{subject}}.log",
    benchmark:
        f"{BENCHMARKS}/reconstructions/{{method}}/{{dataset}}/{{subject}}.tsv"
    conda:
        "../../envs/networks.yaml"
    threads: STUDY.threads
    resources:
        gpu=GPU,
        mem_mb=grow(16000),
        runtime=grow(1440),
    params:
        study=study_file,
        settings=settings_of("reconstruct", method="method"),
        code=code_of("reconstruct"),
    message:
        "Reconstruct what {wildcards.subject} ({wildcards.dataset}) saw, by {wildcards.method}"
    shell:
        "python -m unimind reconstruct --study {params.study} --method {wildcards.method} --dataset {wildcards.dataset}"
        " --subject {wildcards.subject} --prepared {input.prepared} --embeddings {input.embeddings}"
        " --model {input.model} --diffusion {input.diffusion} --autoencoder {input.autoencoder}"
        " --embedding {input.embedding} --stimuli {input.stimuli} --out {output.pictures} --grid {output.grid} 2> {log}"


rule sample_controls:
    input:
        stimuli=f"{RESULTS}/prepared/{{dataset}}/{{stimuli}}.h5",
        prepared=lambda wildcards: prepared(viewers(wildcards)),
        embeddings=f"{RESULTS}/embeddings/{{dataset}}/{{stimuli}}.h5",
        diffusion=network("diffusion"),
        autoencoder=network("autoencoder"),
        embedding=network("embedding"),
    output:
        f"{RESULTS}/reconstructions/controls/{{dataset}}/{{stimuli}}.h5",
    log:
        f"{LOGS}/reconstructions/controls/{{dataset}}/{{stimuli}}.log",
    benchmark:
        f"{BENCHMARKS}/reconstructions/controls/{{dataset}}/{{stimuli}}.tsv"
    conda:
        "../../envs/networks.yaml"
    threads: STUDY.threads
    resources:
        gpu=GPU,
        mem_mb=grow(16000),
        runtime=grow(720),
    params:
        study=study_file,
        settings=settings_of("reconstruct-controls"),
        code=code_of("reconstruct-controls"),
    message:
        "Sample the controls of {wildcards.dataset} ({wildcards.stimuli}): without fMRI, and the two ceilings"
    shell:
        "python -m unimind reconstruct-controls --study {params.study} --stimuli {input.stimuli}"
        " --prepared {input.prepared} --embeddings {input.embeddings} --diffusion {input.diffusion}"
        " --autoencoder {input.autoencoder} --embedding {input.embedding} --out {output} 2> {log}"
