#!/bin/bash
# manifests.sh HELM FOLDER: the chart as plain manifests with its default values, for `kubectl apply -k FOLDER` and as a
# base for Kustomize. Nothing secret is in them: keys and certificates are made in the cluster.
set -euo pipefail

helm=$1
folder=$2
chart=$(cd "$(dirname "$0")" && pwd)/keywright

mkdir -p "$folder"
cat >"$folder/namespace.yaml" <<'YAML'
apiVersion: v1
kind: Namespace
metadata:
  name: keywright-system
  labels:
    pod-security.kubernetes.io/enforce: restricted
YAML
"$helm" template keywright "$chart" --namespace keywright-system --show-only templates/crds.yaml >"$folder/crds.yaml"
"$helm" template keywright "$chart" --namespace keywright-system --set crds.install=false >"$folder/keywright.yaml"
cat >"$folder/kustomization.yaml" <<'YAML'
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - namespace.yaml
  - crds.yaml
  - keywright.yaml
YAML
