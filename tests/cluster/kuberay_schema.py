"""The fields of KubeRay's objects (v1, as of KubeRay 1.6) that our manifests use, strictly: what is not here is a mistake.

Written from the API reference, not generated: a field that is added to a template must be added here, after a look there.
"""

from typing import Any

Schema = dict[str, Any]
TEXT, WHOLE, TRUTH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def one(value: str) -> Schema:
    return {"const": value}


def table(needed: str = "", **fields: Schema) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": needed.split(),
        "additionalProperties": False,
    }


def rows(item: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": item, "minItems": least}


RESOURCES = table("limits requests", limits=TEXTS, requests=TEXTS)
CONTAINER = table(
    "name image resources",
    name=TEXT,
    image={"type": "string", "pattern": "[:@]", "not": {"pattern": ":latest$"}},
    resources=RESOURCES,
    env=rows(table("name value", name=TEXT, value=TEXT)),
    ports=rows(table("name containerPort", name=TEXT, containerPort=WHOLE)),
    volumeMounts=rows(table("name mountPath", name=TEXT, mountPath=TEXT)),
)
CLAIM = table("claimName", claimName=TEXT)
POD = {
    "template": table(
        "spec",
        metadata=table(labels=TEXTS),
        spec=table(
            "containers",
            serviceAccountName=TEXT,
            automountServiceAccountToken=TRUTH,
            priorityClassName=TEXT,
            restartPolicy=one("Never"),
            terminationGracePeriodSeconds=WHOLE,
            securityContext=table(runAsNonRoot=TRUTH, runAsUser=WHOLE, fsGroup=WHOLE),
            nodeSelector=TEXTS,
            tolerations=rows(table("key operator", key=TEXT, operator=one("Exists"))),
            containers=rows(CONTAINER, 1),
            volumes=rows(table("name", name=TEXT, persistentVolumeClaim=CLAIM)),
        ),
    )
}
CLUSTER = table(
    "authOptions headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=table("mode", mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=TRUTH,
    autoscalerOptions=table(version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=WHOLE),
    headGroupSpec=table("template", rayStartParams=TEXTS, **POD),
    workerGroupSpecs=rows(
        table(
            "groupName template minReplicas maxReplicas",
            groupName=TEXT,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            labels=TEXTS,
            rayStartParams=TEXTS,
            **POD,
        )
    ),
)
JOB = table(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    backoffLimit=WHOLE,
    shutdownAfterJobFinishes=TRUTH,
    ttlSecondsAfterFinished=WHOLE,
    rayClusterSpec=CLUSTER,
)


def thing(version: str, kind: str, **fields: Schema) -> Schema:
    named = table("name", name=TEXT, namespace=TEXT, labels=TEXTS)
    needed = " ".join(("apiVersion kind metadata", *fields))
    return table(needed, apiVersion=one(version), kind=one(kind), metadata=named, **fields)


SCHEMAS = {
    "RayCluster": thing("ray.io/v1", "RayCluster", spec=CLUSTER),
    "RayJob": thing("ray.io/v1", "RayJob", spec=JOB),
    "Namespace": thing("v1", "Namespace"),
    "ServiceAccount": thing("v1", "ServiceAccount"),
    "PersistentVolumeClaim": thing(
        "v1",
        "PersistentVolumeClaim",
        spec=table(
            "accessModes resources",
            accessModes=rows(TEXT, 1),
            storageClassName=TEXT,
            resources=table("requests", requests=TEXTS),
        ),
    ),
}


def strict(schema: Any) -> Any:
    """Return a CRD's OpenAPI schema as JSON Schema that refuses unknown fields, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {k: strict(v) for k, v in schema.items() if not str(k).startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(schema.get("properties"), dict):
        made["properties"] = {k: strict(v) for k, v in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    return made


def of_crd(crd: Schema) -> Schema:
    """Return the strict schema of version v1 of a CRD; its metadata is checked by Kubernetes itself."""
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    made = strict(version["schema"]["openAPIV3Schema"])
    made["properties"]["metadata"] = {"type": "object"}
    return made
