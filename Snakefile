# `snakemake` in this folder runs the workflow in workflow/Snakefile.
include: "workflow/Snakefile"


localrules:
    everything,


rule everything:
    default_target: True
    input:
        rules.all.input,
